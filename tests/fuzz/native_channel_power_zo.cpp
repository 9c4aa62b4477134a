// Users superposed over drawn and given channels, with and without allocation, inputs of any layout: equal to the bit. A batch is also cut
// in two.
#include "channel/channel_api.hpp"
#include "native.hpp"
TF_TABLES(Channel, channel)
using namespace tenfold;

// Values of [rows][users][carriers], two numbers each where `complex`.
template <class T>
struct Input {
  Layout layout;
  std::vector<T> data;
  int64_t row = 0, user = 0, carrier = 0;

  Input(Bytes& in, const std::vector<int64_t>& sizes, bool complex, bool positive = false)
      : layout(in, sizes, true), data(in.numbers<T>(layout.reach * (complex ? 2 : 1), positive)) {
    row = layout.strides[0], user = sizes.size() > 1 ? layout.strides[1] : 0, carrier = sizes.size() > 2 ? layout.strides[2] : 0;
  }
  PowerView view() const { return {data.data(), row, user, carrier}; }
  // What Python lets through: finite, and not negative or, with `above`, larger than zero.
  Input& checked(bool above) {
    for (T& x : data)
      if (!std::isfinite(x) || (above && x == 0)) x = T(0.75);
    return *this;
  }
};

template <class T>
static void channels(Bytes& in) {
  const int64_t rows = in.size(1, 20), users = in.size(1, 5), carriers = in.size(1, in.byte() % 8 == 0 ? 1100 : 21);
  in.tame = in.flag();
  const bool given = in.flag(), scaled = in.flag(), allocate = in.flag();
  const Input<T> transmit(in, {rows, users, carriers}, true), gains(in, {rows, users, carriers}, true), alpha(in, {rows}, false);
  const auto mean = Input<T>(in, {rows, users}, false, true).checked(false),
             scale = Input<T>(in, {rows, users}, false, true).checked(false);
  const auto noise = Input<T>(in, {rows}, false, true).checked(false), rho = Input<T>(in, {rows, users}, false, true).checked(false);
  const auto power = Input<T>(in, {rows, users}, false, true).checked(true);
  ChannelArgs a = {};
  a.shape = {rows, users, carriers, sizeof(T) == 8};
  a.transmit = transmit.view(), a.mean = mean.view(), a.scale = scale.view(), a.noise = noise.view();
  if (given) a.gains = gains.view();
  if (scaled && !allocate) a.alpha = alpha.view();
  if (allocate) a.power = power.view(), a.rho = rho.view();
  a.seed = in.word(), a.offset = static_cast<uint32_t>(in.size(0, 9)), a.block = in.size(1, 4), a.allocate = allocate;
  a.first = in.flag() ? 0 : static_cast<int64_t>(in.word() >> 24);
  a.tolerance = sizeof(T) == 8 ? 1e-10 : 2e-6, a.most = 128, a.threads = 1;
  const int64_t cut = in.size(0, rows);
  const auto behind = [&](PowerView view, bool complex) {
    if (view.data != nullptr) view.data = static_cast<const T*>(view.data) + cut * view.row * (complex ? 2 : 1);
    return view;
  };
  on_each("channel", TF_EACH(channel), true, [&](const ChannelKernels& k) {
    std::vector<T> received(2 * rows * carriers), found_alpha(allocate ? rows : 0), dual(allocate ? rows * users : 0);
    auto parts = received, part_alpha = found_alpha, part_dual = dual;
    ChannelArgs whole = a;
    whole.received = received.data(), whole.found = found_alpha.data(), whole.dual = dual.data();
    k.channel(whole);
    ChannelArgs head = a, tail = a;
    head.shape.rows = cut, tail.shape.rows = rows - cut, tail.first = a.first + cut;
    head.received = parts.data(), head.found = part_alpha.data(), head.dual = part_dual.data();
    tail.received = parts.data() + 2 * cut * carriers;
    if (allocate) tail.found = part_alpha.data() + cut, tail.dual = part_dual.data() + cut * users;
    for (PowerView ChannelArgs::* view : {&ChannelArgs::transmit, &ChannelArgs::gains}) tail.*view = behind(a.*view, true);
    for (PowerView ChannelArgs::* view :
         {&ChannelArgs::mean, &ChannelArgs::scale, &ChannelArgs::noise, &ChannelArgs::alpha, &ChannelArgs::power, &ChannelArgs::rho})
      tail.*view = behind(a.*view, false);
    if (cut > 0) k.channel(head);
    if (cut < rows) k.channel(tail);
    Found found, two;
    found.add("received", received), found.add("alpha", found_alpha), found.add("dual", dual);
    two.add("received", parts), two.add("alpha", part_alpha), two.add("dual", part_dual);
    found.require_same(two, "a batch, and the same in two parts:");
    return found;
  });
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  in.flag() ? channels<double>(in) : channels<float>(in);
  return 0;
}

// The plain structures that csrc/ fills and the attack kernels read. No math, no target namespace. Tensors are contiguous; what the numbers
// mean: attack_reference.py and guidance_reference.py.
#pragma once

#include <cstdint>

namespace tenfold {

struct SimplexProjectArgs {
  const void* p;
  void* out;  // may be p
  int64_t rows, columns;
  int dtype;  // float32 or float64
  double radius;
  int threads;
};

struct SteAdamArgs {
  float *p, *m, *v;       // [rows, columns]
  const float* gradient;  // [rows, width]; or, with `ready`, [rows, columns]: the products with the table
  const void* table;      // [columns, width]
  const uint8_t* banned;  // [columns] or null
  int64_t rows, columns, width;
  int dtype;  // of the table
  bool ready;
  double lr, beta1, beta2, eps, weight_decay;
  double correction1, correction2;  // 1 - beta1^step, sqrt(1 - beta2^step)
  int threads;
};

struct DrawArgs {
  const void* p;
  const double* u;
  int64_t* out;
  int64_t rows, columns;
  int dtype;
  int threads;
};

// What a search over part of the table knows of a query: the best score, the next best, where the best is. The lowest index among equals.
struct TokenFound {
  float best;
  float next;
  int64_t at;
};

struct NearestArgs {
  const float* q;         // [rows, width]
  const void* table;      // [columns, width]
  const float* inv_norm;  // [columns], or null: made on the way
  const uint8_t* mask;    // [columns], not 0: may be chosen; or null
  int64_t rows, columns, width;
  int dtype;
  bool cosine;
  int64_t* ids;   // [rows]
  float* scores;  // [rows]
  int threads;
  const float* products;  // [rows, columns] of a part of the table that begins at `first`, already multiplied; or null
  const float* weights;   // then: 1 / |w| (cosine) or |w|^2 / 2, [columns of that part]
  int64_t first;
  TokenFound* found;  // then: what is known so far of each query, [rows]
};

enum LatentOp : int { kAddNoise, kStep, kSafe, kSignLinf, kSignL2 };

// Rows [batch, size] through one formula per element.
struct LatentArgs {
  int op;
  int64_t batch, size;
  int dtype;
  const void* in[4];
  void* out[2];
  const double* each[3];  // what stands once per row: [batch] or, with step 0, [1]
  int64_t step[3];
  const int64_t* times;  // kAddNoise: [batch] or [1]
  int64_t times_step, levels;
  double number[4];
  int kind;   // kStep: the prediction; kSafe: whether warm
  bool flag;  // kStep: doubled; signs: whether there is a ball
  int threads;
};

// Means of differences: pred - (target - eta (other - target)).
struct GuidedMseArgs {
  const void *pred, *target, *other;
  int64_t batch, size;
  int dtype;
  double eta;
  bool squares;
  double* sums;        // forward: [batch, pieces]
  const double* grad;  // backward: [batch]
  void* out;           // backward
  int threads;
};
constexpr int64_t kMsePiece = 8192;

struct SpliceArgs {
  const void *embeds, *adv;  // [batch, columns, width], [batch, extra, width]
  const int64_t* index;      // [batch, columns]
  void* out;                 // forward: [batch, columns, width]
  int64_t batch, columns, extra, width;
  int dtype;
  const void* grad;              // backward: of `out`
  void *grad_embeds, *grad_adv;  // backward
  int threads;
};

struct AttackKernels {
  void (*simplex)(const SimplexProjectArgs&);
  void (*ste_adam)(const SteAdamArgs&);
  void (*sample)(const DrawArgs&);
  void (*nearest)(const NearestArgs&);
  void (*rows)(const LatentArgs&);
  void (*mse)(const GuidedMseArgs&);
  void (*mse_backward)(const GuidedMseArgs&);
  void (*splice)(const SpliceArgs&);
  void (*splice_backward)(const SpliceArgs&);
};

}  // namespace tenfold

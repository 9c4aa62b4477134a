"""DSAN's LMMD_loss (easezyc/deep-transfer-learning): name, arguments and values, on any device."""

from __future__ import annotations

from torch import Tensor, nn

from tenfold import _checks
from tenfold.ops import lmmd


class LMMD_loss(nn.Module):
    """Local MMD of a labelled source and a target with predicted probabilities.

    Unlike there, NaN in the features gives NaN and not 0, and batches may differ in size.

    Args:
        class_num: C; kernel_type: "rbf".
        kernel_mul, kernel_num: the ratio and number of the widths.
        fix_sigma: the base of the widths; None: the mean distance.
    """

    def __init__(
        self,
        class_num: int = 31,
        kernel_type: str = "rbf",
        kernel_mul: float = 2.0,
        kernel_num: int = 5,
        fix_sigma: float | None = None,
    ) -> None:
        super().__init__()
        self.class_num = _checks.integer("class_num", class_num, 1, 2**31 - 1)
        self.kernel_type = _checks.choice("kernel_type", kernel_type, ("rbf",))
        self.kernel_mul, self.kernel_num, self.fix_sigma = kernel_mul, kernel_num, fix_sigma

    def get_loss(self, source: Tensor, target: Tensor, s_label: Tensor, t_label: Tensor) -> Tensor:
        """[N, d], [M, d], labels [N] int64 and probabilities [M, C] to a tensor [1]."""
        if t_label.shape[-1] != self.class_num:
            _checks.fail(ValueError, "t_label", f"shape [M, {self.class_num}]", tuple(t_label.shape))
        value = lmmd(
            source,
            s_label,
            target,
            t_label,
            kernels=self.kernel_num,
            mul=self.kernel_mul,
            bandwidth=self.fix_sigma if self.fix_sigma else "mean",
        )
        assert isinstance(value, Tensor)
        return value.reshape(1)

    forward = get_loss

"""The group ``loss``."""

from typing import Annotated, Literal

from msgspec import Meta

from crossent.config.types import Arguments, ClassPath, Coefficient, PositiveCoefficient, Section, Share


class Loss(Section):
    """What every loss has."""

    class_weight: Literal["balanced"] | list[Coefficient] | None
    ignore_index: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    z_loss: Coefficient
    backend: Literal["auto", "dense", "chunked"]

    @property
    def is_convex(self) -> bool:
        """Whether the mean cost is a convex function of the weights; of a class of the user's own, only it can tell."""
        return self.z_loss == 0

    def __post_init__(self) -> None:
        if isinstance(self.class_weight, list) and not any(self.class_weight):
            raise ValueError(f"class_weight={self.class_weight}: at least one has to be above 0")


class AutoLoss(Loss, tag="auto"):
    pass


class CustomLoss(Loss, tag="custom"):
    class_path: ClassPath
    arguments: Arguments


class RowLoss(Loss):
    """Depends on few numbers of each row, so it need never hold all logits."""


class WholeRowLoss(Loss):
    """Needs all logits of a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend == "chunked":
            raise ValueError(
                f"backend=chunked: {self.__struct_config__.tag} needs all logits at once; use backend=dense, or a loss "
                "that depends on few numbers of a row, as cross_entropy does"
            )


class LossWithoutSoftmax(WholeRowLoss):
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.z_loss:
            raise ValueError(
                f"z_loss={self.z_loss:g}: {self.__struct_config__.tag} has no softmax, whose normaliser z_loss holds; "
                "leave it at 0"
            )


class OneHotLoss(WholeRowLoss, tag="one_hot"):
    pass


class NllLoss(WholeRowLoss, tag="nll"):
    pass


class BinaryLoss(LossWithoutSoftmax, tag="binary"):
    pos_weight: PositiveCoefficient | None


class HingeLoss(LossWithoutSoftmax, tag="hinge"):
    margin: PositiveCoefficient
    p: Literal[1, 2]


class CrossEntropyLoss(RowLoss, tag="cross_entropy"):
    label_smoothing: Share


class LogitAdjustedLoss(RowLoss, tag="logit_adjusted"):
    tau: Coefficient


class FocalLoss(RowLoss, tag="focal"):
    gamma: Coefficient

    @property
    def is_convex(self) -> bool:
        return self.gamma == 0 and super().is_convex


class Poly1Loss(RowLoss, tag="poly1"):
    epsilon: Annotated[float, Meta(ge=-1, le=1e6)]

    @property
    def is_convex(self) -> bool:
        return self.epsilon == 0 and super().is_convex


class GeneralizedCrossEntropyLoss(RowLoss, tag="generalized_cross_entropy"):
    q: Annotated[float, Meta(gt=0, le=1)]
    is_convex = False


class SymmetricCrossEntropyLoss(RowLoss, tag="symmetric_cross_entropy"):
    alpha: Coefficient
    beta: Coefficient
    A: Annotated[float, Meta(lt=0, ge=-1e6)]

    @property
    def is_convex(self) -> bool:
        return self.beta == 0 and super().is_convex


class BrierLoss(RowLoss, tag="brier"):
    is_convex = False


AnyLoss = (
    AutoLoss
    | OneHotLoss
    | NllLoss
    | CrossEntropyLoss
    | BinaryLoss
    | FocalLoss
    | Poly1Loss
    | GeneralizedCrossEntropyLoss
    | SymmetricCrossEntropyLoss
    | BrierLoss
    | LogitAdjustedLoss
    | HingeLoss
    | CustomLoss
)

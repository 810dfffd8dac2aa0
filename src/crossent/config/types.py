"""What values of keys may be, and what the parts of a configuration have in common."""

import sys
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

_LARGEST = sys.float_info.max  # as an upper bound it keeps infinity out; NaN fails every bound

Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Count = Annotated[int, Meta(ge=0)]
AtLeastOne = Annotated[int, Meta(ge=1)]
AtLeastTwo = Annotated[int, Meta(ge=2)]
Limit = Annotated[int, Meta(ge=-1)]
Positive = Annotated[float, Meta(gt=0, le=_LARGEST)]
NonNegative = Annotated[float, Meta(ge=0, le=_LARGEST)]
Coefficient = Annotated[float, Meta(ge=0, le=1e6)]  # of a formula in float32
PositiveCoefficient = Annotated[float, Meta(gt=0, le=1e6)]
Share = Annotated[float, Meta(ge=0, le=1)]
ProperShare = Annotated[float, Meta(ge=0, lt=1)]
Tolerance = Annotated[float, Meta(gt=0, lt=1)]
CountOrShare = Count | Share
InMemory = Literal["auto"] | bool
Text = Annotated[str, Meta(min_length=1)]
FilePath = Annotated[str, Meta(pattern=r"^(?!\?\?\?$).", description="a path")]  # ??? is OmegaConf's for not set
Delimiter = Annotated[str, Meta(pattern=r"^([ !#-~\t]|\\t|tab)$", description="one character, or tab")]
Decimal = Literal[".", ","]
Encoding = Text
Duration = Annotated[str, Meta(pattern=r"^\d+:\d\d:\d\d:\d\d$", description="a time as DD:HH:MM:SS")]
ClassPath = Annotated[str, Meta(pattern=r"^\w+(\.\w+)+$", description="a class as package.module.Class")]
Arguments = dict[str, Any]  # whatever the user's class takes


class Section(Struct, kw_only=True, forbid_unknown_fields=True, tag_field="name"):
    """A part of the configuration; a group's choices are told apart by their key ``name``."""


class Custom(Section, tag="custom"):
    """A class of the user's own, and the keyword arguments it is made with."""

    class_path: ClassPath
    arguments: Arguments


#: The groups of ``conf/`` whose choices are told apart by their key ``name``.
NAMED_GROUPS = ("data", "loss", "optimizer", "scheduler", "accelerator", "logger")

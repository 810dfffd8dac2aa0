"""Every key of the configuration: its type and its range, once; a command's keys are in the module of its name.

The defaults, each with its why, are in ``conf/``. Nothing here imports torch, so that a wrong override is answered at
once.
"""

from crossent.config.data import *
from crossent.config.evaluate import *
from crossent.config.explain import *
from crossent.config.losses import *
from crossent.config.optimizers import *
from crossent.config.predict import *
from crossent.config.running import *
from crossent.config.search import *
from crossent.config.summarize import *
from crossent.config.train import *
from crossent.config.types import *

"""What the process that test runs are forked from imports beforehand."""

import accelerate  # noqa: F401
import controlled  # noqa: F401
import lightning.pytorch  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401
from transformers import GPT2LMHeadModel, Trainer  # noqa: F401

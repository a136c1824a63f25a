"""Networks on disk: folders of this package, the AdderNet authors' files, PyTorch's files."""

from adderize.checkpoints.authors import load_authors_checkpoint
from adderize.checkpoints.folders import load_model, save_model
from adderize.checkpoints.model_card import ModelCard

__all__ = ["ModelCard", "load_authors_checkpoint", "load_model", "save_model"]

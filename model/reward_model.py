"""Sequence-classification reward models of transformers: a conversation in, a score out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from model.formats import CheckpointError


@dataclass(frozen=True, slots=True)
class Reward:
    """The score of one conversation."""

    value: float
    truncated: bool  # its start did not fit into the model's context


class RewardModel:
    """A checkpoint folder with one label, and its chat template.

    One conversation at a time and without padding, so that no score depends on its neighbours; a
    long one fills a GPU by itself. On a GPU in the checkpoint's own precision, else in fp32.
    """

    def __init__(self, checkpoint: Path, *, max_tokens: int | None = None) -> None:
        """Load it. Raises `CheckpointError` for a folder that is no reward model."""
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = "auto" if self._device == "cuda" else torch.float32
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                checkpoint, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{checkpoint} is no reward model: {error}") from error
        _check(checkpoint, model, sorted(loading["missing_keys"]))
        if not self._tokenizer.chat_template:
            raise CheckpointError(f"{checkpoint} has no chat template to write conversations with")
        self._model = model.eval().to(self._device)
        context = getattr(model.config, "max_position_embeddings", None) or 1 << 30
        self.max_tokens = min(context, max_tokens or context)
        self.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")

    @torch.inference_mode()
    def score(self, messages: Sequence[tuple[str, str]]) -> Reward:
        """The score of (role, content) turns. Past the context the start is cut off."""
        turns = [{"role": role, "content": content} for role, content in messages]
        ids = self._tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        truncated = len(ids) > self.max_tokens
        window = torch.tensor([ids[-self.max_tokens :]], device=self._device)
        logits = self._model(input_ids=window, attention_mask=torch.ones_like(window)).logits
        return Reward(float(logits[0, 0]), truncated)


def _check(checkpoint: Path, model: PreTrainedModel, missing: Sequence[str]) -> None:
    """transformers fills what a checkpoint lacks with random numbers: a score of nothing."""
    if missing:
        raise CheckpointError(
            f"{checkpoint} lacks {', '.join(missing[:3])}: a language model, not a reward model?"
        )
    if model.config.num_labels != 1:
        raise CheckpointError(f"{checkpoint} has {model.config.num_labels} labels, not one score")

"""A checkpoint for a network that is never whole in one process: described first, read in parts."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.causal_lm import CausalLM
from model.formats import CheckpointError, release
from model.k2 import K2
from model.k2_config import K2Config, tensor_prefix
from model.load import TOKENIZER_FILES, write_config
from model.network import Network
from model.network_of import is_k2
from model.shards import Checkpoint

HEAD = "lm_head.weight"


def empty_network(
    path: str | Path,
    *,
    compute_dtype: torch.dtype,
    checkpoint_layers: bool = False,
    int4_experts: bool = False,
    count_load: bool = False,
) -> Network:
    """The network of a checkpoint folder on the meta device: shapes, no weights.

    Raises CheckpointError if its config.json is not one of a network that can be trained, or
    `int4_experts` or `count_load` is asked of another network than K2.
    """
    with torch.device("meta"):
        if not is_k2(path):
            if int4_experts or count_load:
                key = "int4_experts" if int4_experts else "router_bias_rate"
                raise CheckpointError(f"{path}: policy.{key} is for K2's experts only")
            return CausalLM.from_config(
                path, compute_dtype=compute_dtype, checkpoint_layers=checkpoint_layers
            )
        try:
            return K2(
                K2Config.from_json(Path(path) / "config.json"),
                compute_dtype,
                checkpoint_layers=checkpoint_layers,
                int4_experts=int4_experts,
                count_load=count_load,
            )
        except ValueError as error:
            raise CheckpointError(str(error)) from error


class WeightReader:
    """Reads any part of a checkpoint, after all of it has been compared with the network."""

    def __init__(self, path: str | Path, network: Network) -> None:
        """Compare names and shapes; `network` is on the meta device, whole.

        Raises CheckpointError naming what is missing, extra, mis-shaped or truncated.
        """
        self._folder = Path(path)
        self._shapes = {
            released: part.shape
            for name, tensor in network.state_dict().items()
            for released, part in release(name, tensor)
        }
        known = self._head_of(network)
        prefix = ""
        passed_over: tuple[str, ...] = ()
        if isinstance(network, K2):
            prefix = tensor_prefix(self._folder / "config.json")
            passed_over = network.config.mtp_prefixes
        self._checkpoint = Checkpoint(
            self._folder, self._shapes, known=known, prefix=prefix, passed_over=passed_over
        )

    def _head_of(self, network: Network) -> list[str]:
        """A head that is the embedding is not read; some files repeat it, and must repeat it."""
        if not isinstance(network, CausalLM) or not network.tied:
            return []
        del self._shapes[HEAD]
        return [HEAD]

    def read(self, slots: Mapping[str, Tensor], first_expert: int) -> None:
        """Fill parameters and buffers, by name; fused experts begin with `first_expert`.

        Raises CheckpointError for a repeated head that is not the embedding.
        """
        parts = {
            released: part
            for name, tensor in slots.items()
            for released, part in release(name, tensor, first_expert)
        }
        self._checkpoint.read_into(parts)
        embedding = next((n for n in parts if n.endswith("embed_tokens.weight")), None)
        if embedding is None or HEAD in self._shapes or HEAD not in self._checkpoint:
            return
        head = torch.empty_like(parts[embedding])
        Checkpoint(self._folder, {HEAD: head.shape}, known=self._shapes).read_into({HEAD: head})
        if not torch.equal(head, parts[embedding]):
            raise CheckpointError(
                f"{self._folder}: {HEAD} is not the embedding, although config.json says "
                "tie_word_embeddings: set it to false"
            )


def write_description(
    tokenizer: Mapping[str, bytes], network: Network, folder: Path, dtype: torch.dtype
) -> None:
    """config.json of a checkpoint of `network`, and its tokenizer's files by name."""
    if isinstance(network, K2):
        write_config(network.config, folder, dtype)
    elif isinstance(network, CausalLM):
        network.config.to_json(folder / "config.json", str(dtype).removeprefix("torch."))
    for name, content in tokenizer.items():
        (folder / name).write_bytes(content)


def read_tokenizer(source: Path) -> dict[str, bytes]:
    """The tokenizer's files of a checkpoint, by name."""
    return {
        name: (source / name).read_bytes() for name in TOKENIZER_FILES if (source / name).is_file()
    }

"""What a group of chains needs to continue, and the record of how far it has come."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from probelib.arguments import is_whole
from probelib.store.integrity import checksum


@dataclass
class Checkpoint:
    """The chains of a group between two steps.

    Attributes:
        step: how many they have taken.
        state: the sampler's state, each tensor with one row per chain.
        noise_rng: states of the torch generators of the noise, uint8, one row per chain.
        batch_rng: states of the NumPy generators of the minibatches, one per chain.
        gradient: that the last step used, where the next one is compared with it.
    """

    step: int
    state: dict[str, Tensor]
    noise_rng: Tensor
    batch_rng: list[dict[str, Any]]
    gradient: Tensor | None = None

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        # Copies: safetensors takes no two tensors that share memory, as a state may hold.
        tensors = {f"state.{name}": t.detach().cpu().clone() for name, t in self.state.items()}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        tensors["noise_rng"] = self.noise_rng
        if self.gradient is not None:
            tensors["gradient"] = self.gradient.detach().cpu().contiguous()
        metadata = {"step": str(self.step), "batch_rng": json.dumps(self.batch_rng)}
        return save(tensors, metadata=metadata)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Checkpoint":
        """From a safetensors file; whatever is wrong with it raises."""
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        state = {
            name.removeprefix("state."): t
            for name, t in tensors.items()
            if name.startswith("state.")
        }
        batch_rng = json.loads(metadata["batch_rng"])
        noise_rng, gradient = tensors["noise_rng"], tensors.get("gradient")
        return cls(int(metadata["step"]), state, noise_rng, batch_rng, gradient)


@dataclass(frozen=True)
class Progress:
    """How far a group of chains has come: its record, written after all that it counts.

    Attributes:
        step: of the checkpoint; 0 without one.
        draws_done, steps_done: written; never fewer than at ``step``.
        wall_time: seconds of work.
        diverged: by position in the trace: the chain's last ``step`` and the ``draws`` before it.
        checkpoint: the file of the checkpoint, and its SHA-256.
        chunks: files of draws and steps, with the checksum (CRC-32C) that each ends in, so that no
            other sound chunk is taken for one of them.
    """

    step: int = 0
    draws_done: int = 0
    steps_done: int = 0
    wall_time: float = 0.0
    diverged: dict[int, dict[str, int]] = field(default_factory=dict)
    checkpoint: tuple[str, str] | None = None
    chunks: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object that carries its own checksum."""
        content = json.loads(json.dumps(asdict(self)))
        return content | {"checksum": checksum(content)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Progress":
        """From such an object.

        Raises:
            ValueError: it has another content than its checksum says, or one that cannot be.
        """
        content = dict(content)
        if content.pop("checksum", None) != checksum(content):
            raise ValueError("it does not have the content that its checksum says")
        try:
            found = cls(
                step=_count(content["step"]),
                draws_done=_count(content["draws_done"]),
                steps_done=_count(content["steps_done"]),
                wall_time=_seconds(content["wall_time"]),
                diverged={
                    int(chain): {"step": _count(at["step"]), "draws": _count(at["draws"])}
                    for chain, at in content["diverged"].items()
                },
                checkpoint=content["checkpoint"] and tuple(map(_text, content["checkpoint"])),
                chunks={_text(file): _text(end) for file, end in content["chunks"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no record of probelib ({error!r})") from error
        if found.checkpoint and len(found.checkpoint) != 2:
            raise ValueError("its checkpoint is not a file and a checksum")
        return found


def _count(value: Any) -> int:
    if not is_whole(value) or value < 0:
        raise ValueError(f"{value!r} stands where a count belongs")
    return int(value)


def _seconds(value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{value!r} stands where seconds belong")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} stands where a name belongs")
    return value


__all__ = ["Checkpoint", "Progress"]

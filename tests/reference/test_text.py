"""From a prompt to text features: cleaning, tokeniser, encoder, cache."""

import gc
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from safetensors.torch import save_file

from inspatio_core import checkpoints
from inspatio_core.errors import InputError
from inspatio_core.reference import text
from inspatio_core.reference.text import (
    EncoderFiles,
    PromptEncoder,
    TextEncoder,
    Tokenizer,
    clean_prompt,
    fingerprint,
    random_prompt_embeds,
)

DIM, HEADS, INNER, FFN, BUCKETS, LAYERS = 24, 3, 12, 40, 8, 3
PROMPTS = [
    "a red car drives along the street",
    "A cat sits on the mat.",
    "schön wie ein café",
    "one",
    "",
    "trees  and\tpeople walking, a sunny day in front of the house",
    "街道 と дом",
]
LINES = [*PROMPTS, "the camera moves forward through a corridor with doors and windows"] * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """spiece.model of a tiny vocabulary with umT5's special tokens."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_prefix=str(folder / "spiece"),
        vocab_size=120,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return folder


@pytest.fixture(scope="module")
def json_folder(folder, tmp_path_factory):
    """The same pieces as tokenizer.json, which asks for a length and padding of its own."""
    import sentencepiece
    from tokenizers import AddedToken, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    scores = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.vocab_size())]
    backend = Backend(models.Unigram(scores, unk_id=3))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens([AddedToken(name, special=True) for name in ("<pad>", "</s>", "<s>")])
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    folder = tmp_path_factory.mktemp("json")
    backend.save(str(folder / "tokenizer.json"))
    return folder


def make_weights(seed=0, dtype=torch.float32, vocab=200, layers=LAYERS):
    draws = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0, shift=0.0):
        return (torch.randn(*shape, generator=draws) * scale + shift).to(dtype)

    weights = {"token_embedding.weight": normal(vocab, DIM), "norm.weight": normal(DIM, scale=0.1, shift=1)}
    for i in range(layers):
        weights |= {f"blocks.{i}.attn.{n}.weight": normal(INNER, DIM, scale=DIM**-0.5) for n in "qkv"}
        weights |= {f"blocks.{i}.norm{n}.weight": normal(DIM, scale=0.1, shift=1) for n in (1, 2)}
        weights |= {f"blocks.{i}.ffn.{n}.weight": normal(FFN, DIM, scale=DIM**-0.5) for n in ("gate.0", "fc1")}
        weights[f"blocks.{i}.attn.o.weight"] = normal(DIM, INNER, scale=INNER**-0.5)
        weights[f"blocks.{i}.ffn.fc2.weight"] = normal(DIM, FFN, scale=FFN**-0.5)
        weights[f"blocks.{i}.pos_embedding.embedding.weight"] = normal(BUCKETS, HEADS)
    return weights


@pytest.fixture
def files(tmp_path, folder):
    save_file(make_weights(), tmp_path / "umt5.safetensors")
    return EncoderFiles(tmp_path / "umt5.safetensors", folder)


class Factory:
    """Reads tiny weights, counts how often, and keeps track of what it made."""

    def __init__(self):
        self.count, self.made = 0, []

    def __call__(self, files, device, dtype):
        from safetensors.torch import load_file

        self.count += 1
        encoder = TextEncoder(load_file(files.weights), device=device, dtype=dtype)
        self.made.append(weakref.ref(encoder))
        return encoder


def never(files, device, dtype):
    raise AssertionError("the encoder is built though the prompt is in the cache")


def make(files, cache, factory, text_len=16, **options):
    return PromptEncoder(files, text_len, DIM, cache, factory=factory, **options)


# Cleaning


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("&lt;a&#10;&#160;b&gt;", "<a b>"),
        ("a &amp;amp; b", "a & b"),
        ("<b> &amp;amp; x", "<b> & x"),  # here ftfy resolves none: it takes the text for HTML
        ("line\r\nline\u2028line", "line line line"),
        ("half a pair \ud800", "half a pair \ufffd"),
        ("\x00 bell\x07 \x1b[31mred", "bell red"),
        ("\u200b", "\u200b"),
    ],
)
def test_clean_prompt(raw, clean):
    assert clean_prompt(raw) == clean
    assert clean_prompt(clean) == clean


# Tokeniser


def test_tokenizer_appends_the_end_and_cuts_to_the_length(folder):
    tokenizer = Tokenizer(folder)
    whole = tokenizer(PROMPTS[5], 512)
    assert whole.dtype == torch.int64
    assert whole[-1] == 1 and 1 not in whole[:-1] and len(whole) > 10
    assert tokenizer(PROMPTS[5], len(whole)).equal(whole)
    assert tokenizer(PROMPTS[5], 6).equal(torch.cat([whole[:5], whole[-1:]]))
    assert tokenizer(PROMPTS[5], 1).tolist() == tokenizer("", 512).tolist() == [1]


def test_both_tokenizer_files_give_the_same_numbers(folder, json_folder):
    one, other = Tokenizer(folder), Tokenizer(json_folder)
    for prompt in map(clean_prompt, PROMPTS):
        assert one(prompt, 512).equal(other(prompt, 512)), prompt


def test_tokenizer_json_is_preferred_and_files_may_be_named(folder, json_folder, tmp_path):
    (tmp_path / "spiece.model").write_bytes((folder / "spiece.model").read_bytes())
    assert Tokenizer(tmp_path).path.name == "spiece.model"
    (tmp_path / "tokenizer.json").write_bytes((json_folder / "tokenizer.json").read_bytes())
    assert Tokenizer(tmp_path).path.name == "tokenizer.json"
    assert Tokenizer(tmp_path / "spiece.model").path.name == "spiece.model"


def test_tokenizer_errors(folder, tmp_path):
    import sentencepiece

    with pytest.raises(InputError, match=r"nothing: no umT5 tokeniser there; give tokenizer\.json"):
        Tokenizer(tmp_path / "nothing")
    with pytest.raises(InputError, match="no umT5 tokeniser"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: is no tokeniser \(.*\); download it anew"):
        Tokenizer(tmp_path)
    (tmp_path / "spiece.model").write_bytes((folder / "spiece.model").read_bytes()[:1000])
    with pytest.raises(InputError, match=r"spiece\.model: is no tokeniser"):
        Tokenizer(tmp_path / "spiece.model")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_prefix=str(tmp_path / "endless"),
        vocab_size=120,
        hard_vocab_limit=False,
        eos_id=-1,
        minloglevel=2,
    )
    with pytest.raises(InputError, match="no end-of-sequence token"):
        Tokenizer(tmp_path / "endless.model")


# Encoder


def test_encoder_equals_the_whole_network_of_transformers():
    from transformers.models.umt5.configuration_umt5 import UMT5Config
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

    weights = make_weights()
    config = UMT5Config(
        vocab_size=200,
        d_model=DIM,
        d_kv=INNER // HEADS,
        d_ff=FFN,
        num_layers=LAYERS,
        num_heads=HEADS,
        relative_attention_num_buckets=BUCKETS,
    )
    whole = UMT5EncoderModel(config).eval()
    named = {name: weights["token_embedding.weight"] for name in ("shared.weight", "encoder.embed_tokens.weight")}
    named["encoder.final_layer_norm.weight"] = weights["norm.weight"]
    for name, tensor in weights.items():
        if name.startswith("blocks."):
            _, layer, rest = name.split(".", 2)
            named[f"encoder.block.{layer}.{text._LAYER[rest]}"] = tensor
    whole.load_state_dict(named, strict=True)
    ids = torch.arange(3, 163)[None]  # longer than the relative positions tell apart
    mask = (torch.arange(160) < 150).long()[None]
    with torch.inference_mode():
        expected = whole(input_ids=ids, attention_mask=mask).last_hidden_state[0]
    encoder = TextEncoder(weights)
    torch.testing.assert_close(encoder.encode(list(ids), list(mask))[0], expected, atol=2e-6, rtol=1e-5)
    # Nothing depends on the padding: a prompt's rows are those of its tokens alone.
    torch.testing.assert_close(encoder.encode([ids[0, :150]])[0], expected[:150], atol=5e-6, rtol=1e-5)


def test_encoder_several_at_once_equal_singles():
    encoder = TextEncoder(make_weights())
    ids = [torch.arange(2, 9), torch.tensor([1]), torch.arange(50, 90)]
    for one, row in zip(ids, encoder.encode(ids)):
        assert row.equal(encoder.encode([one])[0])


def test_encoder_widens_stored_bfloat16_exactly():
    stored = make_weights(dtype=torch.bfloat16)
    ids = [torch.arange(2, 30)]
    features = TextEncoder(stored).encode(ids)[0]
    assert features.dtype == torch.float32
    assert features.equal(TextEncoder({name: tensor.float() for name, tensor in stored.items()}).encode(ids)[0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.pop("blocks.1.norm2.weight"), r"blocks\.1\.norm2\.weight"),
        (lambda w: w.update({"blocks.0.attn.q.bias": torch.zeros(INNER)}), r"blocks\.0\.attn\.q\.bias"),
        (lambda w: w.update({"blocks.2.ffn.fc2.weight": torch.zeros(DIM, FFN + 1)}), r"fc2\.weight \(24, 41\)"),
        (lambda w: w.update({"blocks.7.norm1.weight": torch.zeros(DIM)}), r"blocks\.7\.norm1\.weight"),
        (lambda w: w.pop("token_embedding.weight"), "not those of a umT5 encoder"),
        (lambda w: w.clear(), "not those of a umT5 encoder"),
    ],
)
def test_encoder_is_strict(change, named):
    weights = make_weights()
    change(weights)
    with pytest.raises(InputError, match=named):
        TextEncoder(weights)


def test_encoder_refuses_tokens_it_does_not_have():
    with pytest.raises(InputError, match="has 200 tokens"):
        TextEncoder(make_weights()).encode([torch.tensor([5, 200])])


def test_released_weights_are_read_strictly(files, monkeypatch):
    asked = []

    def read_state_dict(path, kind):
        asked.append((path, kind))
        return make_weights()

    monkeypatch.setattr(checkpoints, "read_state_dict", read_state_dict, raising=False)
    encoder = text.open_encoder(files, torch.device("cpu"), torch.float32)
    assert encoder.dim == DIM and asked == [(files.weights, "umt5")]


def test_released_files_are_those_of_the_checkpoints(monkeypatch, tmp_path):
    places = {"umt5-tokenizer": tmp_path / "tokenizer", "umt5-xxl": tmp_path / "weights"}
    monkeypatch.setattr(checkpoints, "require", lambda names: {n: places[n] for n in names}, raising=False)
    assert text.released_files() == EncoderFiles(weights=tmp_path / "weights", tokenizer=tmp_path / "tokenizer")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_encoder_on_a_gpu_equals_the_cpu_and_leaves_nothing():
    ids, weights = [torch.arange(2, 40), torch.tensor([7, 1])], make_weights(dtype=torch.bfloat16)
    expected = TextEncoder(weights).encode(ids)
    TextEncoder(weights, device="cuda").encode(ids)  # libraries take their workspaces
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for one, other in zip(expected, TextEncoder(weights, device="cuda").encode(ids)):
        assert other.device.type == "cpu"
        torch.testing.assert_close(other, one, atol=2e-5, rtol=2e-4)
    assert torch.cuda.memory_allocated() == allocated and torch.cuda.memory_reserved() <= reserved


# Prompts


def test_prompt_through_tokenizer_and_encoder(files, tmp_path):
    embeds, length = make(files, tmp_path / "cache", Factory()).encode("  " + PROMPTS[1] + "\n")
    assert embeds.shape == (16, DIM) and embeds.dtype == torch.float32
    ids = Tokenizer(files.tokenizer)(PROMPTS[1], 16)
    assert length == len(ids) < 16
    assert embeds[:length].equal(TextEncoder(make_weights()).encode([ids])[0])
    assert not embeds[length:].any()


def test_long_prompt_is_cut(files, tmp_path):
    embeds, length = make(files, tmp_path / "cache", Factory(), text_len=5).encode(PROMPTS[5])
    assert length == 5 and embeds.shape == (5, DIM) and embeds[4].any()


def test_second_call_builds_no_encoder(files, tmp_path):
    first, length = make(files, tmp_path / "cache", Factory()).encode(PROMPTS[0])
    again, same = make(files, tmp_path / "cache", never).encode(" " + PROMPTS[0])
    assert again.equal(first) and same == length


def test_cache_is_in_the_users_cache_by_default(files, own_cache):
    PromptEncoder(files, 16, DIM, factory=Factory()).encode("one")
    assert len(list((own_cache / "prompts").glob("*.safetensors"))) == 1


def test_without_the_encoders_files_known_prompts_come_from_the_cache(files, tmp_path):
    cache, missing = tmp_path / "cache", InputError("umt5-xxl: is not here")

    def find():
        raise missing

    first, _ = make(files, cache, Factory()).encode(PROMPTS[0])
    files.weights.unlink()
    for gone in (files, find):
        encoder = make(gone, cache, never)
        assert encoder.encode(PROMPTS[0])[0].equal(first)
        assert encoder.cached(" " + PROMPTS[0]) and not encoder.cached(PROMPTS[1])
    with pytest.raises(InputError, match="umt5-xxl: is not here"):
        make(find, cache, never).encode(PROMPTS[1])
    with pytest.raises(InputError, match=r"umt5\.safetensors: cannot be read \(No such file"):
        make(files, cache, never).encode(PROMPTS[1])
    with pytest.raises(InputError, match="umt5-xxl: is not here"):
        make(find, tmp_path / "empty", never).encode(PROMPTS[0])


def test_files_that_are_found_when_asked_for(files, tmp_path):
    encoder = make(lambda: files, tmp_path / "cache", Factory())
    assert not encoder.cached("one")
    encoder.encode("one")
    assert encoder.cached("one") and make(None, tmp_path / "cache", never).cached("two")


def test_encoder_is_let_go(files, tmp_path):
    factory = Factory()
    encoder = make(files, tmp_path / "cache", factory)
    encoder.encode(PROMPTS[0])
    gc.collect()
    assert factory.count == 1 and factory.made[0]() is None


def test_what_counts_for_the_cache(files, tmp_path, json_folder):
    cache, factory = tmp_path / "cache", Factory()
    make(files, cache, factory).encode(PROMPTS[0])
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes(files.weights.read_bytes())
    make(EncoderFiles(moved, files.tokenizer), cache, never).encode(PROMPTS[0])
    make(files, cache, factory, text_len=15).encode(PROMPTS[0])
    make(files, cache, factory, dtype=torch.bfloat16).encode(PROMPTS[0])
    make(EncoderFiles(files.weights, json_folder), cache, factory).encode(PROMPTS[0])
    save_file(make_weights(seed=1), moved)
    make(EncoderFiles(moved, files.tokenizer), cache, factory).encode(PROMPTS[0])
    assert factory.count == len(list(cache.glob("*.safetensors"))) == 5


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "another's", "garbage"])
def test_damaged_file_is_made_anew(files, tmp_path, harm):
    cache = tmp_path / "cache"
    first, _ = make(files, cache, Factory()).encode(PROMPTS[0])
    (file,) = cache.glob("*.safetensors")
    whole = file.read_bytes()
    if harm == "another's":
        make(files, cache, Factory()).encode(PROMPTS[1])
        (other,) = set(cache.glob("*.safetensors")) - {file}
        other.replace(file)
    else:
        flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
        file.write_bytes({"cut": whole[:-9], "flipped": flipped, "empty": b"", "garbage": b"\xff" * 99}[harm])
    factory = Factory()
    again, _ = make(files, cache, factory).encode(PROMPTS[0])
    assert again.equal(first) and factory.count == 1
    make(files, cache, never).encode(PROMPTS[0])


def test_unwritable_cache_costs_a_warning(files, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.warns(UserWarning, match="cache: the prompt's features cannot be kept there"):
        embeds, _ = make(files, tmp_path / "cache", Factory()).encode(PROMPTS[0])
    assert embeds.equal(make(files, tmp_path / "other", Factory()).encode(PROMPTS[0])[0])


def test_nothing_half_written_remains(files, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(text.os, "replace", fail)
    with pytest.warns(UserWarning, match="No space left"):
        make(files, tmp_path / "cache", Factory()).encode(PROMPTS[0])
    assert list((tmp_path / "cache").iterdir()) == []


def test_several_prompts_equal_singles_and_open_the_encoder_once(files, tmp_path):
    prompts = [*PROMPTS, PROMPTS[0], " " + PROMPTS[1]]
    singles = [make(files, tmp_path / "one", Factory()).encode(p) for p in prompts]
    make(files, tmp_path / "all", Factory()).encode(PROMPTS[2])
    factory = Factory()
    together = make(files, tmp_path / "all", factory).encode_all(prompts)
    assert factory.count == 1
    assert [n for _, n in together] == [n for _, n in singles]
    assert all(a.equal(b) for (a, _), (b, _) in zip(together, singles))


def test_threads_wait_for_each_other(files, tmp_path):
    factory, results = Factory(), []
    encoder = make(files, tmp_path / "cache", factory)
    threads = [threading.Thread(target=lambda: results.append(encoder.encode(PROMPTS[0]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert factory.count == 1
    assert len(results) == 4 and all(embeds.equal(results[0][0]) for embeds, _ in results)


def test_results_are_the_callers_own(files, tmp_path):
    encoder = make(files, tmp_path / "cache", Factory())
    first, _ = encoder.encode(PROMPTS[0])
    kept = first.clone()
    first.zero_()
    assert encoder.encode(PROMPTS[0])[0].equal(kept)
    assert (torch.nn.Parameter(torch.ones(DIM)) * encoder.encode(PROMPTS[0])[0]).sum().requires_grad


def test_weights_of_another_width_or_without_sense_are_refused(files, tmp_path):
    with pytest.raises(InputError, match=r"umt5\.safetensors: gives 24 features a token, the network takes 32"):
        PromptEncoder(files, 16, 32, tmp_path / "cache", factory=Factory()).encode("one")
    weights = make_weights()
    weights["blocks.1.ffn.fc2.weight"].fill_(float("nan"))
    save_file(weights, files.weights)
    with pytest.raises(InputError, match=r"umt5\.safetensors: gives features that are no numbers"):
        make(files, tmp_path / "cache", Factory()).encode("one")
    assert not (tmp_path / "cache").exists()
    with pytest.raises(InputError, match=r"gone\.pth: cannot be read \(No such file or directory\)"):
        make(EncoderFiles(tmp_path / "gone.pth", files.tokenizer), tmp_path / "cache", never).encode("one")


def test_fingerprint_of_large_files_sees_size_and_spread_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_WHOLE", 1000)
    monkeypatch.setattr(text, "_PIECE", 16)
    content = bytearray(range(256)) * 40
    seen = set()
    for name, at in (("a", None), ("b", None), ("c", 0), ("d", len(content) - 1)):
        changed = bytearray(content)
        if at is not None:
            changed[at] ^= 255
        (tmp_path / name).write_bytes(changed)
        seen.add(fingerprint(tmp_path / name))
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") and len(seen) == 3
    (tmp_path / "a").write_bytes(content + b"\0")
    assert fingerprint(tmp_path / "a") not in seen


# Random features


def test_random_prompt_embeds():
    embeds, length = random_prompt_embeds("a  cat on the mat", 10, 8)
    assert embeds.shape == (10, 8) and embeds.dtype == torch.float32 and length == 6
    assert embeds[:6].all() and not embeds[6:].any()
    assert random_prompt_embeds(" a cat on the mat ", 10, 8)[0].equal(embeds)
    assert not random_prompt_embeds("a cat on the rug", 10, 8)[0].equal(embeds)
    assert random_prompt_embeds("a cat on the mat", 4, 8)[1] == 4
    assert random_prompt_embeds("", 4, 8)[1] == 1
    # The same on every machine.
    assert random_prompt_embeds("one", 2, 2)[0].flatten().tolist() == pytest.approx(
        [-0.24603501, -1.1141051, 0.50350255, 1.6764965], rel=1e-6
    )


def test_without_files_features_are_random_and_nothing_is_kept(tmp_path):
    encoder = PromptEncoder(None, 10, 8, tmp_path / "cache", factory=never)
    embeds, length = encoder.encode("a cat on the mat")
    assert embeds.equal(random_prompt_embeds("a cat on the mat", 10, 8)[0]) and length == 6
    assert not (tmp_path / "cache").exists()


def test_import_is_cheap():
    code = (
        "import sys, inspatio_core.reference.text; print(*({'transformers', 'ftfy', 'safetensors'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

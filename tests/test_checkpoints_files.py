"""Files of weights are told by their headers, refused with the list of what is wrong, read strictly, converted whole.

Nothing here holds gigabytes: safetensors files are sparse (a header, then a hole of the right length), pickles hold
tensors that repeat one stored number.
"""

import json
import math
import os
import pickle
import zipfile
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from inspatio_core import checkpoints
from inspatio_core.checkpoints import files
from inspatio_core.checkpoints.manifest import manifest
from inspatio_core.errors import InputError
from tests.clips import run

KINDS = {  # kind -> keys and parameters of the published file
    "star-1.3b": (825, 1_419_119_680),
    "wan-t2v-1.3b": (825, 1_418_996_800),
    "wan-vae": (194, 126_892_531),
    "tae": (128, 11_315_539),
    "umt5": (242, 5_680_910_336),
}
SHORT = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
WRAPPED = {  # how training programs leave keys
    "none": str,
    "model": "model.{}".format,
    "fsdp": "_fsdp_wrapped_module.{}".format,
    "compiled": "_orig_mod.{}".format,
    "nested": "model._fsdp_wrapped_module._orig_mod.model.{}".format,
    "infix": lambda key: "model." + key.replace(".", "._fsdp_wrapped_module.", 1).replace("attn.", "attn._orig_mod."),
}


def sparse(path, shapes, dtype="BF16"):
    """A safetensors file of these shapes whose tensors are a hole."""
    table, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * SHORT[dtype].itemsize
        table[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(table).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + end)
    return path


def repeated(path, shapes, dtype="BF16", wrap=lambda state: state, **options):
    """A pickle of these shapes in which every tensor repeats one number."""
    state = {key: torch.zeros(1, dtype=SHORT[dtype]).expand(shape) for key, shape in shapes.items()}
    torch.save(wrap(state), path, **options)
    return path


@pytest.fixture
def tiny(monkeypatch):
    """Kinds tae and umt5 with one block and no side longer than 8; key -> shape by kind."""

    def shrunk(kind):
        known = manifest(kind)
        keep = [key for key in known.shapes if not key.startswith("blocks.") or key.startswith("blocks.0.")]
        shapes = {key: tuple(min(n, 8) for n in known.shapes[key]) for key in keep}
        return replace(known, shapes=shapes, names={key: known.names[key] for key in keep})

    small = {kind: shrunk(kind) for kind in ("tae", "umt5")}
    monkeypatch.setattr(checkpoints.manifest, "manifest", lambda kind: small.get(kind) or manifest(kind))
    return {kind: known.shapes for kind, known in small.items()}


def filled(path, shapes, dtype=torch.float32):
    """A pickle of these shapes with random numbers. Returns the path and the tensors."""
    noise = torch.Generator().manual_seed(0)
    state = {key: torch.randn(shape, generator=noise).to(dtype) for key, shape in shapes.items()}
    torch.save(state, path)
    return path, state


def changed(shapes, **changes):
    """`shapes` with one difference."""
    shapes = dict(shapes)
    for what, key in changes.items():
        if what == "missing":
            del shapes[key]
        elif what == "extra":
            shapes[key] = (3, 5)
        else:
            shapes[key] = (*shapes[key][:-1], shapes[key][-1] + 1)
    return shapes


def refused(capsys, *argv) -> str:
    """The line with which a command ends in code 2."""
    code, out, err = run(capsys, "checkpoints", *argv)
    assert code == 2 and out == "", (out, err)
    assert err.count("\n") == 1 and err.startswith("inspatio: error: "), err
    return err


# ------------------------------------------------------------------------------------------------------------ manifests


@pytest.mark.parametrize("kind", KINDS)
def test_manifest(kind):
    shapes = checkpoints.shapes_of(kind)
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == KINDS[kind]
    assert not any(part in key.split(".") for key in shapes for part in ("model", "_orig_mod"))


def test_the_two_transformers_differ_in_their_input_alone():
    star, t2v = checkpoints.shapes_of("star-1.3b"), checkpoints.shapes_of("wan-t2v-1.3b")
    assert {key for key in star if star[key] != t2v[key]} == {"patch_embedding.weight"} and star.keys() == t2v.keys()
    assert star["patch_embedding.weight"][1] == 36 and t2v["patch_embedding.weight"][1] == 16


def test_kinds_are_those_of_the_table():
    assert set(checkpoints.KINDS) == set(KINDS) == {c.kind for c in checkpoints.CHECKPOINTS.values() if c.kind}
    with pytest.raises(InputError, match="'star'.*star-1.3b.*umt5"):
        checkpoints.shapes_of("star")


def umt5_class():
    from transformers.models.umt5.configuration_umt5 import UMT5Config
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

    sizes = dict(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, vocab_size=256384)
    return UMT5EncoderModel(UMT5Config(**sizes, feed_forward_proj="gated-gelu"))


def transformer_class(channels):
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    return WanTransformer3DModel(
        in_channels=channels,
        out_channels=16,
        num_attention_heads=12,
        attention_head_dim=128,
        ffn_dim=8960,
        num_layers=30,
        text_dim=4096,
        freq_dim=256,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    )


def vae_class():
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    return AutoencoderKLWan()


@pytest.mark.parametrize(
    "kind, build",
    [
        ("umt5", umt5_class),
        pytest.param("wan-vae", vae_class, marks=pytest.mark.slow),  # seconds to import diffusers' models
        pytest.param("star-1.3b", lambda: transformer_class(36), marks=pytest.mark.slow),
        pytest.param("wan-t2v-1.3b", lambda: transformer_class(16), marks=pytest.mark.slow),
    ],
)
def test_names_of_the_library_classes(kind, build):
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in build().state_dict().items()}
        state = {key: torch.empty(shape) for key, shape in checkpoints.shapes_of(kind).items()}
    assert {name: tensor.shape for name, tensor in checkpoints.renamed(state, kind).items()} == wanted


def test_renamed_tells_what_it_cannot():
    with pytest.raises(InputError, match="tae: no library class"):
        checkpoints.renamed({}, "tae")
    with pytest.raises(InputError, match="no name in diffusers for foo.bar"):
        checkpoints.renamed({"foo.bar": torch.zeros(1)}, "wan-vae")


# --------------------------------------------------------------------------------------------------------- verify: good


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("kind", KINDS)
def test_verify_safetensors(capsys, tmp_path, kind, dtype):
    file = sparse(tmp_path / "weights.bin", checkpoints.shapes_of(kind), dtype)  # the suffix says nothing
    code, out, err = run(capsys, "checkpoints", "verify", file)
    keys, parameters = KINDS[kind]
    name = str(SHORT[dtype]).removeprefix("torch.")
    assert (code, err) == (0, "") and out == f"ok: {file}: {kind}, {keys} keys, {parameters} parameters, {name}\n"
    assert os.stat(file).st_blocks * 512 < 1e6  # the hole was not filled


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("kind", KINDS)
def test_verify_pickle(capsys, tmp_path, kind, old):
    file = repeated(tmp_path / "w.safetensors", checkpoints.shapes_of(kind), _use_new_zipfile_serialization=not old)
    code, out, err = run(capsys, "checkpoints", "verify", file, "--kind", kind)
    assert (code, err) == (0, "") and out.startswith(f"ok: {file}: {kind}, ") and "bfloat16" in out


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("kind", ["star-1.3b", "wan-vae"])
def test_accepted_prefixes(tmp_path, kind, how):
    shapes = {WRAPPED[how](key): shape for key, shape in checkpoints.shapes_of(kind).items()}
    report = checkpoints.verify(sparse(tmp_path / "w", shapes))
    assert report.kind == kind and report.keys == {key: WRAPPED[how](key) for key in checkpoints.shapes_of(kind)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "loss": torch.tensor(0.5)},
        lambda state: {"model": state, "optimizer": {"lr": 1e-4}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {key: torch.nn.Parameter(value) for key, value in state.items()},
    ],
)
def test_wrapped_pickles(tmp_path, wrap):
    file = repeated(tmp_path / "w.pt", checkpoints.shapes_of("tae"), wrap=wrap)
    assert checkpoints.verify(file).kind == "tae"


def test_mixed_types_and_the_name_of_the_weights(capsys, tmp_path, tiny):
    file, state = filled(tmp_path / "w.pth", tiny["tae"])
    state["encoder.0.bias"] = state["encoder.0.bias"].half()
    torch.save(state, file)
    code, out, _ = run(capsys, "checkpoints", "verify", file, "--kind", "taew2_1")
    assert code == 0 and out.endswith("float32 and float16\n")


def test_a_smaller_network_by_its_shapes(tmp_path):
    shapes = {"patch_embedding.weight": (8, 36, 1, 2, 2), "blocks.0.modulation": (1, 6, 8), "own.table": (3,)}
    file = sparse(tmp_path / "w", {f"model.{key}": shape for key, shape in shapes.items()})
    assert checkpoints.verify(file, shapes=shapes).parameters == 8 * 36 * 4 + 48 + 3
    with pytest.raises(InputError, match=r"is not the network asked for: 1 extra: model.own.table; 1 of wrong shape"):
        checkpoints.verify(file, shapes={"patch_embedding.weight": (9, 36, 1, 2, 2), "blocks.0.modulation": (1, 6, 8)})


def test_keys_that_look_like_a_prefix_stay_when_they_are_asked_for(tmp_path):
    shapes = {"model.weight": (2,), "weight": (3,)}
    assert checkpoints.verify(sparse(tmp_path / "w", shapes), shapes=shapes).keys == {key: key for key in shapes}


def test_headers_and_metadata(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(2, 3).bfloat16(), "b": torch.zeros(())}, tmp_path / "w", {"x": "y"})
    assert checkpoints.headers(tmp_path / "w") == {"a": ((2, 3), torch.bfloat16), "b": ((), torch.float32)}
    assert checkpoints.metadata(tmp_path / "w") == {"x": "y"}
    torch.save({"a": torch.zeros(2, 3).half()}, tmp_path / "p")
    assert checkpoints.headers(tmp_path / "p") == {"a": ((2, 3), torch.float16)}
    assert checkpoints.metadata(tmp_path / "p") == {}


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_headers_of_a_pickle_read_no_tensor(tmp_path, name):
    """Of a terabyte that is a hole in the file, and would fit no memory."""
    file = tmp_path / name
    large = torch.from_file(str(tmp_path / "hole"), shared=True, size=1 << 39, dtype=torch.bfloat16)
    with torch.serialization.skip_data():
        torch.save({"a": large, "b": torch.zeros(2, 3)}, file)
    assert file.stat().st_size > 1 << 40
    assert checkpoints.headers(file) == {"a": ((1 << 39,), torch.bfloat16), "b": ((2, 3), torch.float32)}


# ---------------------------------------------------------------------------------------------------------- verify: bad


@pytest.mark.parametrize("write", [sparse, repeated])
@pytest.mark.parametrize("given", [True, False], ids=["kind", "inferred"])
@pytest.mark.parametrize(
    "kind, what, key",
    [
        ("star-1.3b", "missing", "blocks.7.cross_attn.norm_k.weight"),
        ("wan-t2v-1.3b", "extra", "img_emb.proj.0.bias"),
        ("wan-vae", "wrong", "decoder.upsamples.7.time_conv.weight"),
        ("tae", "wrong", "encoder.2.conv.weight"),
        ("umt5", "missing", "token_embedding.weight"),
        ("umt5", "wrong", "token_embedding.weight"),
    ],
)
def test_one_wrong_key(capsys, tmp_path, kind, what, key, given, write):
    file = write(tmp_path / "w.pth", changed(checkpoints.shapes_of(kind), **{what: key}))
    line = refused(capsys, "verify", file, *(["--kind", kind] if given else []))
    sort = "of wrong shape or type" if what == "wrong" else what
    assert f"{file}: is not {kind}: 1 {sort}: {key}" in line
    if what == "wrong":
        shape = checkpoints.shapes_of(kind)[key]
        assert f"{[*shape[:-1], shape[-1] + 1]} instead of {[*shape]}" in line


def test_long_lists_are_counted(capsys, tmp_path):
    shapes = checkpoints.shapes_of("star-1.3b")
    line = refused(capsys, "verify", sparse(tmp_path / "w", dict(list(shapes.items())[:600])))
    assert "225 missing: " in line and "and 125 more" in line
    names = list(shapes)
    line = refused(capsys, "verify", sparse(tmp_path / "w", {name: shapes[name] for name in names[100:]}))
    assert "100 missing: " in line and all(name in line for name in names[:100]) and " more" not in line


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_prefix(capsys, tmp_path, kind):
    file = sparse(tmp_path / "w", {f"foo.{key}": shape for key, shape in checkpoints.shapes_of(kind).items()})
    line = refused(capsys, "verify", file, "--kind", kind)
    keys = KINDS[kind][0]
    assert f"{keys} missing: " in line and f"{keys} extra: foo." in line and "starts with 'foo.'" in line
    line = refused(capsys, "verify", file)
    assert "none of the known networks" in line and "starts with 'foo.'" in line and len(line) < 600


def test_a_prefix_on_one_key_is_wrong(capsys, tmp_path):
    shapes = changed(checkpoints.shapes_of("tae"), missing="decoder.22.bias") | {"module.decoder.22.bias": (3,)}
    line = refused(capsys, "verify", sparse(tmp_path / "w", shapes))
    assert "1 missing: decoder.22.bias; 1 extra: module.decoder.22.bias" in line


def test_the_same_key_twice(capsys, tmp_path):
    shapes = checkpoints.shapes_of("tae")
    line = refused(capsys, "verify", sparse(tmp_path / "w", shapes | {"model.decoder.22.bias": (3,)}))
    assert "is not tae: 1 extra: model.decoder.22.bias" in line


@pytest.mark.parametrize("kind", ["star-1.3b", "wan-t2v-1.3b"])
def test_a_wrong_type_tells_nothing_of_the_kind(capsys, tmp_path, monkeypatch, kind):
    monkeypatch.setitem(SHORT, "F8_E4M3", torch.float8_e4m3fn)
    line = refused(capsys, "verify", sparse(tmp_path / "w", checkpoints.shapes_of(kind), "F8_E4M3"))
    assert f"is not {kind}: 825 of wrong shape or type: " in line and "of float8_e4m3fn" in line
    assert "instead of" not in line


def test_another_kind_than_asked_for(capsys, tmp_path):
    file = sparse(tmp_path / "w", checkpoints.shapes_of("wan-t2v-1.3b"))
    line = refused(capsys, "verify", file, "--kind", "inspatio-world-1.3b")
    assert "1 of wrong shape or type: patch_embedding.weight [1536, 16, 1, 2, 2] instead of [1536, 36, 1, 2, 2]" in line
    assert "fastdepth" not in refused(capsys, "verify", file, "--kind", "fastdepth").split("one of")[1]


def test_numbers_that_are_no_weights(capsys, tmp_path, tiny):
    file, state = filled(tmp_path / "w.pth", tiny["tae"])
    state["decoder.22.bias"] = state["decoder.22.bias"].to(torch.int8)
    torch.save(state, file)
    assert "1 of wrong shape or type: decoder.22.bias of int8" in refused(capsys, "verify", file)


@pytest.mark.parametrize("name, content", [("empty", b""), ("text", b"weights, honestly\n" * 9), ("short", b"\x80")])
def test_no_weights_at_all(capsys, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in refused(capsys, "verify", tmp_path / name)


def test_folder_missing_file_pointer_and_other_archives(capsys, tmp_path):
    assert "is a folder" in refused(capsys, "verify", tmp_path)
    assert "no such file" in refused(capsys, "verify", tmp_path / "nowhere.pth")
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert "git lfs pull" in refused(capsys, "verify", tmp_path / "pointer")
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr("notes.txt", "x")
    assert "is a zip archive" in refused(capsys, "verify", tmp_path / "archive")
    for name, value in (("list", [torch.zeros(1)]), ("none", {}), ("step", {"step": 3})):
        torch.save(value, tmp_path / name)
        assert "holds no state dict" in refused(capsys, "verify", tmp_path / name)


@pytest.mark.parametrize("short", [1, 1000, 10**9])
def test_cut_off_safetensors(capsys, tmp_path, short):
    file = sparse(tmp_path / "w", checkpoints.shapes_of("star-1.3b"))
    os.truncate(file, file.stat().st_size - short)
    assert "is cut off" in refused(capsys, "verify", file)
    os.truncate(file, 40_000)  # within the header
    assert "is cut off" in refused(capsys, "verify", file)


def test_safetensors_without_tensors(capsys, tmp_path):
    for kind in ([], ["--kind", "tae"]):
        assert "holds no tensors" in refused(capsys, "verify", sparse(tmp_path / "w", {}), *kind)


def test_longer_safetensors(capsys, tmp_path):
    file = sparse(tmp_path / "w", checkpoints.shapes_of("tae"))
    with file.open("ab") as end:
        end.write(b"\0")
    assert "is longer than its header says" in refused(capsys, "verify", file)


@pytest.mark.parametrize(
    "row",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]},
        {"dtype": "F32", "shape": ["a", "b"], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, None]},
        {"dtype": "F32", "shape": [2], "data_offsets": 8},
        {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]},
        {"shape": [2]},
        [1, 2],
    ],
)
def test_damaged_safetensors_header(capsys, tmp_path, row):
    header = json.dumps({"a": row}).encode()
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    line = refused(capsys, "verify", tmp_path / "w")
    assert "damaged" in line or "F31" in line


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_cut_off_pickles(capsys, tmp_path, share, old):
    file = repeated(tmp_path / "w", checkpoints.shapes_of("tae"), _use_new_zipfile_serialization=not old)
    os.truncate(file, int(file.stat().st_size * share))
    assert "cut off" in refused(capsys, "verify", file)


class Touch:
    """Unpickled by a careless reader, makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("verb", ["verify", "convert"])
@pytest.mark.parametrize("how", ["zip", "before torch 1.6", "plain"])
def test_code_in_a_pickle_is_not_run(capsys, tmp_path, how, verb):
    marker, file, out = tmp_path / "marker", tmp_path / "w.pth", tmp_path / "out.safetensors"
    state = {"state_dict": {"decoder.22.bias": torch.zeros(3)}, "args": Touch(marker)}
    if how == "plain":
        file.write_bytes(pickle.dumps({"args": Touch(marker)}, protocol=2))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=how == "zip")
    line = refused(capsys, verb, file, *([out] if verb == "convert" else []))
    assert "refused: it holds code (posix.system)" in line
    assert not marker.exists() and not out.exists()
    with pytest.raises(InputError, match="holds code"):
        checkpoints.read_state_dict(file, "tae")
    assert not marker.exists()
    torch.load(file, weights_only=False) if how != "plain" else pickle.loads(file.read_bytes())
    assert marker.exists()  # so it was armed


# -------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("form", ["pickle", "compressed pickle", "safetensors"])
def test_read(tmp_path, tiny, form):
    file, state = filled(tmp_path / "w.pth", tiny["tae"], torch.bfloat16)
    if form == "safetensors":
        file = tmp_path / "w.safetensors"
        safetensors.torch.save_file({f"model.{key}": value for key, value in state.items()}, file)
    elif form == "compressed pickle":  # by a zip tool: its tensors cannot be mapped
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(tmp_path / "z.pth", "w", zipfile.ZIP_DEFLATED) as out:
            for name in archive.namelist():
                out.writestr(name, archive.read(name))
        file = tmp_path / "z.pth"
    read = checkpoints.read_state_dict(file, "tae")
    assert list(read) == list(tiny["tae"])
    assert all(torch.equal(read[key], state[key]) and read[key].dtype == torch.bfloat16 for key in state)
    cast = checkpoints.read_state_dict(file, dtype=torch.float32)
    assert all(torch.equal(cast[key], state[key].float()) for key in state)


def test_read_is_strict(tmp_path, tiny):
    file, state = filled(tmp_path / "w.pth", tiny["tae"])
    for key in ("decoder.1.bias", "decoder.22.bias"):
        del state[key]
    torch.save(state | {"more": torch.zeros(2)}, file)
    with pytest.raises(InputError, match="2 missing: decoder.1.bias, decoder.22.bias; 1 extra: more"):
        checkpoints.read_state_dict(file, "tae")


def test_read_gives_plain_tensors(tmp_path):
    """Parameters and repeated or permuted storage come out as contiguous tensors that need no gradient."""
    shapes = {"a": (4, 6), "b": (5, 3), "c": (2,)}
    state = {
        "a": torch.ones(1).expand(4, 6),
        "b": torch.arange(15.0).reshape(3, 5).T,
        "c": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save(state, tmp_path / "w")
    read = checkpoints.read_state_dict(tmp_path / "w", shapes=shapes)
    assert all(value.is_contiguous() and not value.requires_grad for value in read.values())
    assert all(torch.equal(read[key], state[key]) for key in shapes)


def test_last_rows_of_a_time_growth(capsys, tmp_path, tiny):
    """TAEHV for a stage that may double the frame rate has twice the rows; a stage that does not takes the last."""
    key = "decoder.7.conv.weight"
    file, state = filled(tmp_path / "w.pth", tiny["tae"])
    state[key] = torch.cat([state[key] + 1, state[key]])
    torch.save(state, file)
    code, out, _ = run(capsys, "checkpoints", "verify", file)
    assert code == 0 and out.endswith(f"only the last 8 rows of {key}\n")
    assert torch.equal(checkpoints.read_state_dict(file, "tae")[key], state[key][8:])
    checkpoints.convert(file, tmp_path / "w.safetensors")
    assert torch.equal(safetensors.torch.load_file(tmp_path / "w.safetensors")[key], state[key][8:])
    state["decoder.8.weight"] = torch.cat([state["decoder.8.weight"]] * 2)
    torch.save(state, file)
    assert "1 of wrong shape or type: decoder.8.weight" in refused(capsys, "verify", file)


# ----------------------------------------------------------------------------------------------------------- converting


@pytest.mark.parametrize("short, dtype", [("bf16", torch.bfloat16), ("f16", torch.float16), ("f32", torch.float32)])
def test_convert(capsys, tmp_path, tiny, short, dtype):
    file, state = filled(tmp_path / "w.pth", tiny["tae"])
    torch.save({"state_dict": {f"_orig_mod.model.{key}": value for key, value in state.items()}}, file)
    out = tmp_path / "new" / "w.safetensors"
    code, text, err = run(capsys, "checkpoints", "convert", file, out, "--dtype", short)
    assert (code, err) == (0, "") and text.startswith(f"{out}: tae, 128 keys, ") and str(dtype)[6:] in text
    written = safetensors.torch.load_file(out)
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], state[key].to(dtype)) for key in state)
    assert [p.name for p in out.parent.iterdir()] == ["w.safetensors"]
    read = checkpoints.read_state_dict(out, "tae")
    assert all(torch.equal(read[key], written[key]) for key in state)


def test_convert_keeps_types_and_metadata(tmp_path, tiny):
    state = {key: torch.ones(shape, dtype=torch.float16) for key, shape in tiny["tae"].items()}
    state["decoder.22.bias"] = state["decoder.22.bias"].double()
    safetensors.torch.save_file({f"model.{k}": v for k, v in state.items()}, tmp_path / "a", {"made by": "hand"})
    report = checkpoints.convert(tmp_path / "a", tmp_path / "b.safetensors")
    assert report.dtypes == ("float16", "float64")
    assert checkpoints.metadata(tmp_path / "b.safetensors") == {"format": "pt", "made by": "hand"}
    written = safetensors.torch.load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(written[key], state[key]) and written[key].dtype == state[key].dtype for key in state)


def test_convert_to_a_library_and_back(tmp_path, tiny):
    file, state = filled(tmp_path / "w.pth", tiny["umt5"], torch.bfloat16)
    out = tmp_path / "w.safetensors"
    report = checkpoints.convert(file, out, to="transformers")
    assert report.library == "transformers"
    written = safetensors.torch.load_file(out)
    wanted = checkpoints.renamed(state, "umt5")
    tied = wanted.pop("encoder.embed_tokens.weight")  # the library ties it to shared.weight and saves that alone
    assert written.keys() == wanted.keys() and torch.equal(tied, written["shared.weight"])
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)
    for read in (checkpoints.read_state_dict(out, "umt5"), checkpoints.read_state_dict(out, shapes=tiny["umt5"])):
        assert list(read) == list(state) and all(torch.equal(read[key], state[key]) for key in state)
    again = checkpoints.convert(out, tmp_path / "again.safetensors", dtype="f32")
    assert again.library == "transformers" and again.dtypes == ("float32",)


@pytest.mark.parametrize("kind", ["star-1.3b", "wan-vae"])
def test_a_librarys_names_are_understood(tmp_path, kind):
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in checkpoints.shapes_of(kind).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoints.renamed(state, kind).items()}
    report = checkpoints.verify(sparse(tmp_path / "w", shapes))
    assert (report.kind, report.library) == (kind, "diffusers") and list(report.keys.values()) != list(report.keys)


def test_convert_refuses(capsys, tmp_path, tiny):
    file, state = filled(tmp_path / "w.pth", tiny["tae"])
    out = tmp_path / "out.safetensors"
    assert "ends in .safetensors" in refused(capsys, "convert", file, tmp_path / "out.pth")
    assert "tae cannot be written for 'diffusers'; there is: same" in refused(
        capsys, "convert", file, out, "--to", "diffusers"
    )
    assert "--dtype" in refused(capsys, "convert", file, out, "--dtype", "int8")
    (tmp_path / "file").write_text("x")
    assert "file" in refused(capsys, "convert", file, tmp_path / "file" / "out.safetensors")
    state["decoder.22.bias"][1] = 1e5
    torch.save(state, file)
    assert "values of decoder.22.bias do not fit float16" in refused(capsys, "convert", file, out, "--dtype", "f16")
    torch.save(state | {"more": torch.zeros(1)}, file)
    assert "1 extra: more" in refused(capsys, "convert", file, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "w.pth"]


def test_convert_keeps_the_earlier_file_when_it_fails(capsys, tmp_path, tiny, monkeypatch):
    file, state = filled(tmp_path / "w.pth", tiny["tae"])
    out = tmp_path / "out.safetensors"
    checkpoints.convert(file, out)
    before = out.read_bytes()

    def full(path, *_):
        path.write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    assert "No space left" in refused(capsys, "convert", file, out, "--dtype", "f16")
    assert out.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["out.safetensors", "w.pth"]

"""Configurations: names, files, and values that cannot be."""

import json

import pytest

from inspatio_core.errors import InputError
from inspatio_core.star.config import CONFIGS, StarConfig, from_mapping, star_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim: 0 is not a positive whole number"),
        ({"dim": True}, "dim: True is not a positive whole number"),
        ({"num_layers": -1}, "num_layers: -1 is not a positive"),
        ({"ffn_dim": 12.0}, "ffn_dim: 12.0 is not a positive whole"),
        ({"latents_per_block": "3"}, "latents_per_block: '3' is not"),
        ({"text_len": None}, "text_len: None is not"),
        ({"num_heads": 7}, "1536 / 7 is not an even width"),
        ({"dim": 36, "num_heads": 12}, "36 / 12 is not an even width"),
        ({"dim": 48, "num_heads": 12}, "48 / 12 is not an even width per head of at least 6"),
        ({"freq_dim": 255}, "freq_dim: 255 is not even"),
        ({"in_dim": 20}, "in_dim: 20 is neither 16"),
        ({"steps": []}, "steps:"),
        ({"steps": [1000, 1000]}, "steps: .* not falling"),
        ({"steps": [250, 500]}, "steps: .* not falling"),
        ({"steps": [1001, 500]}, r"steps: .* in \[0, 1000\]"),
        ({"steps": [500, -1]}, r"steps: .* in \[0, 1000\]"),
        ({"steps": [float("nan")]}, "steps:"),
        ({"steps": ["soon"]}, "steps:"),
        ({"steps": 4}, "steps:"),
        ({"codec": "vae"}, "codec: 'vae' is not one of wan, tae"),
        ({"codec_width": 0}, "codec_width: 0"),
        ({"codec_width": "8"}, "codec_width: '8'"),
        ({"shift": 0}, "shift: 0"),
        ({"shift": "5"}, "shift: '5'"),
        ({"shift": float("inf")}, "shift: inf"),
        ({"eps": -1e-6}, "eps: -1e-06"),
        ({"eps": float("nan")}, "eps: nan"),
        ({"text": "no"}, "text: 'no' is neither true nor false"),
        ({"warp": 1}, "warp: 1 is neither"),
        ({"fill": None}, "fill: None is neither"),
    ],
)
def test_values_that_cannot_be(changes, message: str) -> None:
    for make in (lambda: StarConfig(**changes), lambda: StarConfig().replace(**changes), lambda: from_mapping(changes)):
        with pytest.raises(InputError, match=message) as raised:
            make()
        assert "\n" not in str(raised.value)


def test_fields_that_there_are_not() -> None:
    with pytest.raises(InputError, match="depth, heads: not a field .* num_heads"):
        from_mapping({"heads": 4, "depth": 3, "dim": 64})
    with pytest.raises(InputError, match="heads: not a field"):
        StarConfig().replace(heads=4)


def test_the_named_sizes() -> None:
    released = star_config("1.3b")
    assert released == StarConfig() and (released.dim, released.num_layers, released.head_dim) == (1536, 30, 128)
    assert (released.in_dim, released.out_dim, released.latents_per_block) == (36, 16, 3)
    assert released.steps == (1000, 750, 500, 250) and released.warp and released.shift == 5 and released.text
    assert star_config("14b").head_dim == 128
    assert not star_config("tiny").text
    assert all(config.multiple == 16 for config in CONFIGS.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_json_there_and_back(name: str, tmp_path) -> None:
    config = CONFIGS[name].replace(steps=[1000, 333.5], codec="tae", fill=True)
    file = tmp_path / "model.json"
    file.write_text(config.to_json())
    assert star_config(file) == star_config(str(file)) == config and hash(star_config(file)) == hash(config)


def test_a_file_may_leave_fields_out(tmp_path) -> None:
    file = tmp_path / "model.json"
    file.write_text(json.dumps({"dim": 96, "num_heads": 4}))
    assert star_config(file) == StarConfig(dim=96, num_heads=4)


def test_replace_leaves_the_original_as_it_is() -> None:
    config = StarConfig()
    changed = config.replace(latents_per_block=1, steps=(500,))
    assert (changed.latents_per_block, changed.steps, config.latents_per_block) == (1, (500.0,), 3)
    assert changed.replace(latents_per_block=3, steps=config.steps) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[1]", "is an object of fields"),
        ('{"dim": 7}', "dim, num_heads: 7 / 12"),
        ('{"size": 7}', "size: not a field"),
        (b"\xff\xfe\x00", "not readable as JSON"),
    ],
)
def test_a_bad_file_is_named(text, message: str, tmp_path) -> None:
    file = tmp_path / "model.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as raised:
        star_config(file)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(InputError, match="'2b' is neither one of 1.3b, 14b, tiny nor a JSON file"):
        star_config("2b")

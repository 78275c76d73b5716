"""What the star generator is made from, and what it refuses."""

import copy
import json
import pickle
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from inspatio_core import checkpoints
from inspatio_core.codecs.wan_vae import random_weights
from inspatio_core.errors import InputError
from inspatio_core.generators import GeneratorOptions, make_generator
from inspatio_core.generators.star import StarGenerator
from inspatio_core.star.config import CONFIGS
from inspatio_core.star.dit import build_star, randomise
from inspatio_core.world import World

from ..synthetic import make_reference

SIZE = (32, 48)
SMALL = CONFIGS["tiny"].replace(dim=48, ffn_dim=64, num_heads=2, num_layers=1, freq_dim=16)


def create(**options) -> StarGenerator:
    return make_generator("star", options=GeneratorOptions(**options), size=SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of a model of one's own, as ``checkpoint_path`` takes it."""
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(SMALL.to_json())
    model = build_star(SMALL)
    randomise(model, seed=3)
    save_file(model.state_dict(), path / "star.safetensors", {"star_config": SMALL.to_json()})
    save_file(random_weights(SMALL.codec_width, 4), path / "codec.safetensors")
    return path


def frames(generator) -> torch.Tensor:
    return World(make_reference(8, SIZE), generator, size=SIZE, memory=False).start().first.rgb


def test_what_it_declares():
    spec = create(random_weights=True).spec
    assert (spec.name, spec.frames, spec.first_frames, spec.multiple, spec.look_ahead) == ("star", 4, 1, 16, 0)
    assert spec.generates and not spec.framewise and spec.needs == {"anchor", "reference", "history"}
    spec = create(random_weights=True, codec="tae", latents_per_block=3).spec
    assert (spec.frames, spec.first_frames, spec.look_ahead) == (12, 9, 3)


def test_random_weights_are_announced(folder):
    assert "RANDOM WEIGHTS" in create(random_weights=True).notices[0]
    assert not create(checkpoint_path=str(folder)).notices


def test_weights_from_a_folder(folder):
    generator = create(checkpoint_path=str(folder))
    assert generator.model.config == SMALL
    expected = build_star(SMALL)
    randomise(expected, seed=3)
    for ours, theirs in zip(generator.model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs) and not ours.requires_grad
    rgb = frames(generator)
    assert rgb.dtype == torch.uint8 and rgb.float().std() > 1
    assert not torch.equal(rgb, frames(create(random_weights=True)))


def test_weights_from_a_file_that_says_what_it_is(folder, monkeypatch):
    file = str(folder / "star.safetensors")
    with pytest.raises(InputError, match=r"Wan2\.1_VAE"):  # the network is there, its codec is not
        create(checkpoint_path=file)
    monkeypatch.setattr(checkpoints, "locate", lambda name: {"wan2.1-vae": folder / "codec.safetensors"}.get(name))
    assert torch.equal(frames(create(checkpoint_path=file)), frames(create(checkpoint_path=str(folder))))


def test_a_file_of_another_network_is_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text(SMALL.replace(num_layers=2).to_json())
    for name in ("star.safetensors", "codec.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(InputError, match="blocks.1"):
        create(checkpoint_path=str(tmp_path))
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(3)}, other)
    with pytest.raises(InputError, match="other.safetensors"):
        create(checkpoint_path=str(other))


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.", "model._fsdp_wrapped_module."])
def test_prefixes_of_wrappers_are_seen_through(folder, tmp_path, monkeypatch, prefix):
    """As `checkpoints verify` does; here the widths alone must tell what it is."""
    monkeypatch.setitem(CONFIGS, "1.3b", SMALL)
    monkeypatch.setattr(checkpoints, "locate", lambda name: {"wan2.1-vae": folder / "codec.safetensors"}.get(name))
    model = build_star(SMALL)
    randomise(model, seed=3)
    file = tmp_path / "wrapped.safetensors"
    save_file({prefix + key: value for key, value in model.state_dict().items()}, file)
    assert torch.equal(frames(create(checkpoint_path=str(file))), frames(create(checkpoint_path=str(folder))))


def test_a_folder_says_all_that_it_lacks(folder, tmp_path):
    with pytest.raises(InputError, match=r"neither config\.json nor InSpatio-World-1\.3B\.safetensors"):
        create(checkpoint_path=str(tmp_path))
    (tmp_path / "config.json").write_text(SMALL.to_json())
    with pytest.raises(InputError, match=r"star\.safetensors and codec\.safetensors"):
        create(checkpoint_path=str(tmp_path))


def test_another_codec_has_its_full_width(folder, monkeypatch, tmp_path):
    found = tmp_path / "tae.safetensors"
    save_file({k: torch.zeros(s) for k, s in checkpoints.shapes_of("tae").items()}, found)
    monkeypatch.setattr(checkpoints, "locate", lambda name: {"taew2_1": found}.get(name))
    generator = create(checkpoint_path=str(folder), codec="tae")
    assert generator.codec.name == "tae" and generator.codec.look_ahead == 3


def test_a_text_that_is_no_configuration(tmp_path):
    for text, what in (("xx", "JSON"), ("[1]", "object of fields"), ('{"dim": 0}', "dim")):
        file = tmp_path / "model.safetensors"
        save_file({"a": torch.zeros(1)}, file, {"star_config": text})
        with pytest.raises(InputError, match=f"model.safetensors.*{what}"):
            create(checkpoint_path=str(file))


def test_a_network_without_an_anchor(tmp_path):
    config = tmp_path / "t2v.json"
    config.write_text(SMALL.replace(in_dim=16).to_json())
    generator = create(random_weights=True, model=str(config))
    assert "anchor" not in generator.spec.needs and frames(generator).float().std() > 1


def test_everything_that_is_missing_is_named_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "locate", lambda name: None)
    with pytest.raises(InputError) as error:
        create(model="1.3b")
    said = str(error.value)
    for file in ("InSpatio-World-1.3B.safetensors", "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "tokenizer"):
        assert file in said
    with pytest.raises(InputError) as error:
        create(model="1.3b", codec="tae")
    assert "taew2_1" in str(error.value) and "Wan2.1_VAE" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"dtype": "int8"}, "dtype"),
        ({"fp8": True}, "fp8"),
        ({"model": "2b"}, "model"),
        ({"codec": "jpeg"}, "codec"),
        ({"checkpoint_path": "some.file"}, "checkpoint_path"),
        ({"checkpoint_path": "nowhere/at.all", "random_weights": False}, "nowhere"),
        ({"tae_checkpoint_path": "tae.pth", "random_weights": False}, "tae_checkpoint_path"),
        ({"tae_checkpoint_path": "nowhere/tae.pth", "codec": "tae", "random_weights": False}, "nowhere"),
        ({"latents_per_block": 0}, "latents_per_block"),
    ],
)
def test_options_that_cannot_be(options, what):
    with pytest.raises(InputError, match=what):
        create(**{"random_weights": True, **options})


def test_sizes_must_fit():
    with pytest.raises(InputError, match="multiples of 16"):
        World(make_reference(4, (40, 48)), "star", size=(40, 48), options=GeneratorOptions(random_weights=True))


def test_a_prompt_needs_a_network_with_text():
    generator = create(random_weights=True)
    with pytest.raises(InputError, match="prompt"):
        generator.encode_prompt("a cat")


def test_prompts_come_from_option_or_caption(tmp_path):
    config = tmp_path / "text.json"
    config.write_text(json.dumps({**asdict(SMALL), "text": True, "text_dim": 16, "text_len": 24}))
    reference = make_reference(4, SIZE)
    generator = create(random_weights=True, model=str(config))
    assert "text" in generator.spec.needs
    object.__setattr__(reference, "caption", "a wall behind a panel")
    assert generator.new_state(reference, 0).prompt == "a wall behind a panel"
    assert create(random_weights=True, model=str(config), prompt="rain").new_state(reference, 0).prompt == "rain"


def test_states_are_values(folder):
    generator = create(checkpoint_path=str(folder))
    session = World(make_reference(8, SIZE), generator, size=SIZE, memory=False).start()
    state = session._states[0]
    twin, again = copy.deepcopy(state), pickle.loads(pickle.dumps(state))
    assert twin is not state and twin.last is state.last  # shared, since nothing writes to it
    kept = state.last.clone()
    session.step()
    assert torch.equal(twin.last, kept) and not torch.equal(session._states[0].last, kept)
    assert torch.equal(again.last, kept) and again.seed == state.seed


def test_bfloat16_stays_close(folder):
    exact = frames(create(checkpoint_path=str(folder))).float()
    half = frames(create(checkpoint_path=str(folder), dtype="bfloat16")).float()
    assert 0 < (exact - half).abs().mean() < 3


def test_compatible_rounds_towards_zero(folder):
    better, released = (frames(create(checkpoint_path=str(folder), compatible=c)).int() for c in (False, True))
    assert set((better - released).unique().tolist()) == {0, 1}


def test_nothing_grows_from_block_to_block(folder):
    """Tensors alive, and the bytes they hold, are the same after 30 blocks as after 10."""
    import gc

    world = World(make_reference(8, SIZE), create(checkpoint_path=str(folder)), size=SIZE, map_limit=2000)
    session = world.start()

    def alive():
        session.wait()
        gc.collect()
        tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
        return len(tensors), sum(t.numel() * t.element_size() for t in tensors)

    counts = []
    for number in range(1, 31):
        session.step(torch.tensor([[0, 0, 0.1, 0, 0.6, 0]], dtype=torch.float64))
        if number in (10, 20, 30):
            counts.append(alive())
    (_, _), (tensors, size), (later, later_size) = counts
    assert later == tensors and later_size < 1.01 * size  # the map's points, within its limit, come and go


@pytest.mark.slow
def test_memory_is_flat_over_two_thousand_frames(folder):
    """Small variant: test_nothing_grows_from_block_to_block."""
    import psutil

    world = World(make_reference(8, SIZE), create(checkpoint_path=str(folder)), size=SIZE, map_limit=2000)
    session, process, resident = world.start(), psutil.Process(), []
    for number in range(1, 501):
        session.step(torch.tensor([[0, 0, 0.1, 0, 0.6, 0]], dtype=torch.float64))
        if number % 20 == 0:
            session.wait()
            resident.append(process.memory_info().rss)
    assert int(session.frames_shown[0]) == 2001
    # The allocator keeps more or less of what was freed: the floor is what tells.
    early, late = min(resident[3:14]), min(resident[14:])
    assert late - early < 16 << 20, resident


def test_smaller_batches_use_the_room_of_the_largest():
    generator = create(random_weights=True)
    whole, part = generator._workspace(0, 3, 4, 6), generator._workspace(0, 2, 4, 6)
    assert part.k.data_ptr() == whole.k.data_ptr() and part.k.shape[1] == 2
    assert generator._workspace(0, 3, 4, 6) is whole and generator._workspace(0, 2, 4, 6) is part
    larger = generator._workspace(0, 5, 4, 6)
    assert larger.k.shape[1] == 5 and generator._workspace(0, 3, 4, 6).k.data_ptr() == larger.k.data_ptr()

"""The fused front-end: parts on one grid, normalised apart, configured and saved as one."""

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

import gafx
from gafx.compose import compose_train
from gafx.config import TrainConfig, build, run_id
from gafx.errors import UsageError
from gafx.frontends.fused import Fused
from gafx.nn.maps import FusedMapNorm, MapNorm

MEL, SLIM = {"name": "mel"}, {"name": "gafx_r", "width": 16}
WAVE = torch.randn(2, 1, 22_050, generator=torch.Generator().manual_seed(0)) * 0.1


def fused(**parts):
    torch.manual_seed(0)
    return gafx.create_frontend("fused", parts=parts)


@torch.no_grad()
def test_channels_are_the_parts_maps():
    front = fused(a=MEL, b=SLIM).eval()
    feature_map = front(WAVE)
    assert front.output_shape(22_050) == (2, 128, 111)
    assert torch.equal(feature_map[:, :1], front.parts["a"](WAVE))
    assert torch.equal(feature_map[:, 1:], front.parts["b"](WAVE))
    assert (front.sample_rate, front.channels, front.learned, front.planes) == (22_050, 1, True, 1)


def test_the_default_is_mel_beside_gafx_r():
    front = Fused()
    assert list(front.parts) == ["mel", "gafx_r"]
    assert front.output_shape(661_600) == (2, 128, 3308)
    strided = fused(a={**MEL, "hop_length": 400}, b={**SLIM, "time_stride": 2})
    assert strided.output_shape(661_600) == (2, 128, 1654)


def test_each_part_is_normalised_apart():
    model = gafx.create_model(
        {"name": "fused", "parts": {"a": MEL, "b": SLIM}}, {"name": "ast", "depth": 1}, num_classes=3,
        segment_seconds=1.0,
    ).eval()  # fmt: skip
    assert isinstance(model.map_norm, FusedMapNorm)
    fixed, learned = model.map_norm.parts()
    assert (fixed.learned, learned.learned) == (False, True)
    fixed.fit(-9.0, 2.0)
    with torch.no_grad():
        features, plain = model.features(WAVE), model.frontend(WAVE)
        assert_close(features[:, :1], (plain[:, :1] + 9) / 4)
        assert_close(features[:, 1:], MapNorm(learned=True)(plain[:, 1:]))
        assert_close(features[:, 1].std(dim=(1, 2), correction=0), torch.full((2,), 0.5), atol=1e-3, rtol=0)
    assert model.classifier.map_shape == (2, 128, 111)


@torch.no_grad()
def test_stereo_and_mono_parts():
    unet = {"name": "gafx_u", "width": 16, "sources": "channels"}
    mel = {"name": "mel", "sample_rate": 16_000, "hop_length": 1024, "win_length": 2048}
    front = fused(u=unet, m=mel).eval()
    stereo = torch.randn(1, 2, 16_000, generator=torch.Generator().manual_seed(1)) * 0.1
    feature_map = front(stereo)
    assert feature_map.shape == (1, *front.output_shape(16_000)) == (1, 5, 128, 16)
    assert_close(feature_map[:, 4:], front.parts["m"](stereo.mean(dim=1, keepdim=True)))
    assert torch.equal(feature_map[:, :4], front.parts["u"](stereo))
    mono = stereo[:, :1]
    assert torch.equal(front(mono), front(mono.expand(-1, 2, -1)))


def test_a_part_within_a_part():
    front = fused(a={"name": "fused", "parts": {"x": MEL, "y": SLIM}}, b=MEL)
    assert front.output_shape(4000) == (3, 128, 20)
    assert [group.learned for group in front.groups()] == [False, True, False]


def test_weights_of_a_whole_and_of_a_part(tmp_path):
    front, single = fused(a=MEL, b=SLIM), gafx.create_frontend(**SLIM)
    for name, module in (("fused", front), ("single", single)):
        save_file({key: t.contiguous() for key, t in module.state_dict().items()}, tmp_path / f"{name}.safetensors")
    torch.manual_seed(7)
    again = gafx.create_frontend("fused", parts={"a": MEL, "b": SLIM}, pretrained=str(tmp_path / "fused.safetensors"))
    assert_close(again.state_dict(), front.state_dict(), atol=0, rtol=0)
    part = fused(a=MEL, b={**SLIM, "pretrained": str(tmp_path / "single.safetensors")})
    assert_close(part.parts["b"].state_dict(), single.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "is empty"),
        ({"a": MEL, "b": {"name": "mel", "hop_length": 160}}, r"parts.b does not share the grid .* of 'a'"),
        ({"a": MEL, "b": {"name": "mel", "n_mels": 64}}, "does not share the grid"),
        ({"a": MEL, "b": {"name": "gafx_u", "width": 16}}, "does not share the sampling rate of 'a': 16000 and 22050"),
        (
            {
                "a": {"name": "mel", "sample_rate": 16_000, "hop_length": 256},
                "b": {"name": "gafx_u", "width": 16},
            },
            "planes",
        ),
        ({"a": {"width": 16}}, r"parts.a.name is missing"),
        ({"a": "mel"}, r"parts.a.name is missing"),
        ({"a": {"name": "mell"}}, "did you mean 'mel'"),
        ({"a": {"name": "os.system"}}, "unknown front-end"),
        ({"a": {"name": "gafx_r", "widht": 3}}, r"parts.a.widht.*did you mean 'width'"),
        ({"a": {"name": "gafx_r", "width": "wide"}}, r"parts.a.width='wide'"),
        ({"a.b": MEL}, "cannot be a part's name"),
        ({"forward": MEL}, "cannot be a part's name"),
        ([MEL], "list"),
    ],
)
def test_what_is_refused(parts, message):
    with pytest.raises(UsageError, match=message):
        gafx.create_frontend("fused", parts=parts)


def test_configuration(pytestconfig):
    """Checked before anything is built, defaults of the parts filled in, every key open to the command line."""
    folder = pytestconfig.rootpath / "configs"
    config = compose_train(["frontend=fused", "frontend.parts={a:{name:mel},b:{name:gafx_r}}"], folder)
    assert config.frontend["parts"]["b"]["width"] == 64
    slim = compose_train(
        ["frontend=fused", "frontend.parts={a:{name:mel},b:{name:gafx_r}}", "frontend.parts.b.width=16"], folder
    )
    assert slim.frontend["parts"]["b"]["width"] == 16
    assert run_id(slim) != run_id(config)
    assert compose_train(["frontend=fused"], folder).frontend["parts"] is None
    with pytest.raises(UsageError, match=r"frontend.parts.a.n_mel.*did you mean 'n_mels'"):
        build(TrainConfig, {"frontend": {"name": "fused", "parts": {"a": {"name": "mel", "n_mel": 3}}}})

"""What a 2D donor knows, its 3D encoder knows: to 1e-5, for every kind of donor."""

import dataclasses
from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers import QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from neurodeploy._errors import DonorError
from neurodeploy.networks import Network, NetworkConfig
from neurodeploy.transfer import (
    Donor,
    config_for,
    config_like,
    donor_from_tensors,
    donor_from_timm,
    fold_colour,
    inflate,
    load_donor,
    resample_positions,
    transfer,
)
from neurodeploy.transfer._transfer import OWN_FIELDS

DEPTH = 5


def vit(**changes: object) -> VisionTransformer:
    options: dict[str, object] = {
        "img_size": 32,
        "patch_size": 16,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 3,
        "num_classes": 0,
        **changes,
    }
    torch.manual_seed(1)
    model = VisionTransformer(**options).eval()
    # Weights of any size, so that no term can hide behind a zero.
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


#: Cut-down models with the features of each family's timm configuration.
KINDS: dict[str, Callable[[], VisionTransformer]] = {
    "supervised, patch 16": lambda: vit(num_classes=7),
    "DINO, patch 8": lambda: vit(patch_size=8),
    "DINOv2 with registers, patch 14": lambda: vit(
        patch_size=14, img_size=56, init_values=1e-5, reg_tokens=4, no_embed_class=True
    ),
    "MAE, averaged, no final norm": lambda: vit(
        global_pool="avg", fc_norm=True, num_classes=3
    ),
    "CLIP, pre-norm, quick GELU": lambda: vit(
        pre_norm=True, act_layer=QuickGELU, norm_layer=_norm_of_clip
    ),
    "DeiT-3, patch 16": lambda: vit(no_embed_class=True, init_values=1e-6),
    "query and key norms, no class token": lambda: vit(
        qk_norm=True,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        qkv_bias=False,
    ),
}


def _norm_of_clip(width: int, **_: object) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-5)


def build(
    model: VisionTransformer, how: str = "center", **changes: object
) -> tuple[Network, Donor]:
    donor = donor_from_timm(model, "donor")
    side = model.patch_embed.img_size[0]
    config = NetworkConfig(
        mode="slice",
        tile=(DEPTH, side, side),
        patch=(DEPTH, *donor.patch),
        width=48,
        heads=3,
        depth=2,
        taps=(2,),
    )
    config = dataclasses.replace(config_for(donor, config), **changes)
    network = Network(config).eval()
    transfer(donor, network.encoder, how, gray_range=(0.0, 1.0))
    return network, donor


def as_the_donor_sees(gray: Tensor, donor: Donor) -> Tensor:
    """(B, H, W) gray in [0, 1] as normalised RGB."""
    mean = torch.tensor(donor.mean)[:, None, None]
    std = torch.tensor(donor.std)[:, None, None]
    return (gray[:, None].repeat(1, 3, 1, 1) - mean) / std


@pytest.mark.parametrize("kind", KINDS)
def test_center_gives_any_stack_the_tokens_of_its_middle_slice(kind: str) -> None:
    model = KINDS[kind]()
    network, donor = build(model)
    stack = torch.rand(2, 1, *network.config.tile)
    with torch.no_grad():
        ours = network.encoder(stack)[-1]
        theirs = model.forward_features(
            as_the_donor_sees(stack[:, 0, DEPTH // 2], donor)
        )
        if isinstance(model.norm, nn.Identity):
            theirs = network.encoder.norm(theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_average_gives_a_constant_stack_the_tokens_of_its_image(kind: str) -> None:
    model = KINDS[kind]()
    network, donor = build(model, "average")
    image = torch.rand(2, *network.config.tile[1:])
    stack = image[:, None, None].repeat(1, 1, DEPTH, 1, 1)
    with torch.no_grad():
        ours = network.encoder(stack)[-1]
        theirs = model.forward_features(as_the_donor_sees(image, donor))
        if isinstance(model.norm, nn.Identity):
            theirs = network.encoder.norm(theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_zero_slices_of_center() -> None:
    network, _ = build(vit())
    network.encoder(torch.rand(1, 1, *network.config.tile))[-1].sum().backward()
    gradient = network.encoder.patch_embed.weight.grad
    assert gradient is not None
    assert all(gradient[:, :, z].abs().max() > 0 for z in range(DEPTH))


def test_folded_kernel_answers_gray_as_the_donor_answers_rgb() -> None:
    kernel, bias = torch.randn(8, 3, 4, 4), torch.randn(8)
    mean, std = (0.48, 0.45, 0.40), (0.22, 0.21, 0.27)
    gray = torch.rand(5, 4, 4)
    rgb = (gray[:, None] - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    theirs = torch.einsum("bcyx,ecyx->be", rgb, kernel) + bias
    folded, offset = fold_colour(kernel, bias, mean, std)
    ours = torch.einsum("byx,eyx->be", gray, folded) + offset
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    folded, offset = fold_colour(kernel, bias, mean, std, gray_range=(-2.0, 6.0))
    ours = torch.einsum("byx,eyx->be", gray * 8 - 2, folded) + offset
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [1, 2, 4, 5])
def test_inflation_keeps_the_kernel(depth: int) -> None:
    kernel = torch.randn(3, 4, 4)
    for how in ("center", "average"):
        whole = inflate(kernel, depth, how).sum(dim=2)[:, 0]
        torch.testing.assert_close(whole, kernel)


def test_positions_keep_their_grid_and_follow_timm_to_another() -> None:
    from timm.layers import resample_abs_pos_embed

    table = torch.randn(1, 12, 5)
    assert torch.equal(resample_positions(table, (3, 4), (3, 4)), table)
    theirs = resample_abs_pos_embed(table, (6, 8), (3, 4), num_prefix_tokens=0)
    torch.testing.assert_close(resample_positions(table, (3, 4), (6, 8)), theirs)


def test_a_donor_in_half_precision_loses_nothing_on_its_way() -> None:
    """Its numbers are exact; what is made of them is not, in half."""
    kernel, bias = torch.randn(8, 3, 4, 4).half(), torch.randn(8).half()
    statistics = (0.48, 0.45, 0.40), (0.22, 0.21, 0.27)
    for half, whole in zip(
        fold_colour(kernel, bias, *statistics),
        fold_colour(kernel.float(), bias.float(), *statistics),
        strict=True,
    ):
        assert torch.equal(half, whole)
    table = torch.randn(1, 12, 5).half()
    moved = resample_positions(table, (3, 4), (6, 8))
    assert torch.equal(moved, resample_positions(table.float(), (3, 4), (6, 8)))


def test_class_and_register_rows_stay_first_on_another_grid() -> None:
    model = vit(reg_tokens=2)
    network, donor = build(model, tile=(DEPTH, 64, 64))
    assert network.encoder.pos_embed.shape[1] == 3 + 16
    assert torch.equal(
        network.encoder.pos_embed[:, :3], donor.tensors["pos_embed"][:, :3]
    )
    assert torch.equal(network.encoder.cls_token, donor.tensors["cls_token"])
    assert torch.equal(network.encoder.reg_token, donor.tensors["reg_token"])


def test_in_volume_mode_every_layer_of_tokens_starts_as_its_middle_slice() -> None:
    model = vit()
    donor = donor_from_timm(model, "donor")
    config = config_for(
        donor, NetworkConfig(tile=(8, 32, 32), patch=(4, 16, 16), width=48, heads=3)
    )
    network = Network(config).eval()
    transfer(donor, network.encoder, gray_range=(0.0, 1.0))
    stack = torch.rand(1, 1, 8, 32, 32)
    with torch.no_grad():
        ours = network.encoder.embed(stack)[:, 1:].reshape(2, 4, 48)
        for layer in range(2):
            image = as_the_donor_sees(stack[:, 0, 4 * layer + 2], donor)
            theirs = model._pos_embed(model.patch_embed(image))[0, 1:]
            torch.testing.assert_close(ours[layer], theirs, rtol=1e-5, atol=1e-5)


def test_every_parameter_of_donor_and_encoder_has_one_row() -> None:
    model = vit(num_classes=7)
    donor = donor_from_timm(model, "donor")
    network, _ = build(model)
    rows = transfer(donor, network.encoder)
    names = [row.parameter.replace("patch_embed.proj", "patch_embed") for row in rows]
    expected = {n.replace("patch_embed.proj", "patch_embed") for n in donor.tensors}
    expected |= set(network.encoder.state_dict())
    assert sorted(names) == sorted(expected)
    rules = {row.parameter: row.rule for row in rows}
    assert rules["head.weight"] == "left out"
    assert rules["depth_embed"] == "new"
    assert rules["patch_embed.weight"] == "inflated"
    assert rules["blocks.1.attn.qkv.weight"] == "copied"


def test_a_parameter_without_a_rule_is_named() -> None:
    donor = donor_from_timm(vit(), "donor")
    network, _ = build(vit())
    odd = dataclasses.replace(
        donor, tensors={**donor.tensors, "blocks.0.adapter.weight": torch.zeros(1)}
    )
    with pytest.raises(DonorError, match=r"no rule for .*blocks\.0\.adapter\.weight"):
        transfer(odd, network.encoder)


def test_a_parameter_that_is_missing_is_named_and_nothing_is_changed() -> None:
    donor = donor_from_timm(vit(), "donor")
    network = Network(build(vit())[0].config)
    before = {k: v.clone() for k, v in network.encoder.state_dict().items()}
    poor = dict(donor.tensors)
    del poor["blocks.1.mlp.fc2.bias"]
    with pytest.raises(DonorError, match=r"nothing for .*blocks\.1\.mlp\.fc2\.bias"):
        transfer(dataclasses.replace(donor, tensors=poor), network.encoder)
    after = network.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "name", ["eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "resnet18"]
)
def test_rotary_and_other_kinds_are_refused_by_name(name: str) -> None:
    with pytest.raises(DonorError, match=name):
        load_donor(f"timm:{name}")


def test_a_name_that_timm_does_not_know_is_refused() -> None:
    with pytest.raises(DonorError, match="no model vit_enormous_patch3"):
        load_donor("timm:vit_enormous_patch3")
    with pytest.raises(DonorError, match=r"cannot make .*\.nonsense .*augreg_in21k"):
        load_donor("timm:vit_tiny_patch16_224.nonsense")


def test_a_local_file_gives_what_the_model_has(tmp_path) -> None:
    from safetensors.torch import save_file

    model = vit(embed_dim=192)
    state = model.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(
        {"teacher": {f"backbone.{k}": v for k, v in state.items()}}, tmp_path / "w.pth"
    )
    torch.save(
        {
            "model": {
                "state_dict": {f"backbone.module.{k}": v for k, v in state.items()}
            }
        },
        tmp_path / "deep.pth",
    )
    wrapped = {f"module.{k}": v.contiguous() for k, v in state.items()}
    save_file(wrapped, tmp_path / "wrapped.safetensors")
    for file in ("w.safetensors", "w.pth", "deep.pth", "wrapped.safetensors"):
        donor = load_donor(str(tmp_path / file))
        assert (donor.heads, donor.grid, donor.patch) == (3, (2, 2), (16, 16))
        assert all(torch.equal(donor.tensors[k], v) for k, v in state.items())


ARCHITECTURE = "vit_tiny_patch16_224"


def of_architecture(**changes: object) -> dict[str, Tensor]:
    return timm.create_model(ARCHITECTURE, pretrained=False, **changes).state_dict()


@pytest.mark.parametrize("classes", [0, 7, 1000])
def test_a_classifier_is_left_out_of_a_file_whatever_its_classes(
    tmp_path, classes: int
) -> None:
    state = of_architecture(num_classes=classes)
    torch.save(state, tmp_path / "w.pth")
    donor = load_donor(str(tmp_path / "w.pth"), ARCHITECTURE)
    assert donor.tensors.keys() == state.keys()
    network = Network(config_for(donor, NetworkConfig()))
    rows = transfer(donor, network.encoder)
    heads = [row.rule for row in rows if row.parameter.startswith("head.")]
    assert heads == ["left out"] * (2 if classes else 0)


def test_a_file_for_images_of_another_size_keeps_its_position_table(tmp_path) -> None:
    state = of_architecture(img_size=384)
    torch.save(state, tmp_path / "w.pth")
    donor = load_donor(str(tmp_path / "w.pth"), ARCHITECTURE)
    assert donor.grid == (24, 24)
    assert torch.equal(donor.tensors["pos_embed"], state["pos_embed"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch_size": 8}, r"patches of \(8, 8\) and .* of \(16, 16\)"),
        ({"depth": 13}, r"has blocks\.12\.norm1\.weight too many \(and 11 more\)"),
        ({"depth": 11}, r"lacks blocks\.11\.norm1\.weight \(and 11 more\)"),
        ({"in_chans": 1}, r"patch_embed\.proj\.weight of shape \(192, 1, 16, 16\)"),
    ],
)
def test_a_file_of_another_architecture_is_refused_in_a_sentence(
    tmp_path, changes: dict[str, int], said: str
) -> None:
    torch.save(of_architecture(**changes), tmp_path / "w.pth")
    with pytest.raises(DonorError, match=said) as refused:
        load_donor(str(tmp_path / "w.pth"), ARCHITECTURE)
    assert "\n" not in str(refused.value)


def test_a_file_without_tensors_says_what_it_holds(tmp_path) -> None:
    torch.save({"net": vit().state_dict(), "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(DonorError, match=r"no tensors .* but net, epoch"):
        load_donor(str(tmp_path / "w.pth"))


def test_a_donor_of_nan_is_refused_by_name() -> None:
    donor = donor_from_timm(vit(), "donor")
    network = Network(build(vit())[0].config)
    name = "blocks.1.attn.qkv.weight"
    odd = {**donor.tensors, name: donor.tensors[name] * float("nan")}
    with pytest.raises(DonorError, match=r"blocks\.1\.attn\.qkv\.weight holds NaN"):
        transfer(dataclasses.replace(donor, tensors=odd), network.encoder)


def test_weights_of_another_shape_are_refused_by_name() -> None:
    state = vit(embed_dim=192).state_dict()
    flat = state["patch_embed.proj.weight"].flatten(1)
    for name, tensor, said in (
        ("patch_embed.proj.weight", flat, "patch kernel of shape .192, 768."),
        ("pos_embed", state["pos_embed"][0], "position table of shape .5, 192."),
        ("pos_embed", state["pos_embed"][:, :0], "table of shape .1, 0, 192., whose"),
        ("pos_embed", state["pos_embed"].repeat(2, 1, 1), "table of shape .2, 5, 192."),
        ("blocks.0.mlp.fc1.weight", torch.zeros(()), "dense layer of shape .., where"),
        ("blocks.x.mlp.fc1.weight", flat, "parameters of a block x, and 3 blocks"),
        ("blocks.99999999.ls1.gamma", flat, "of a block 99999999, and 3 blocks"),
    ):
        with pytest.raises(DonorError, match=said):
            donor_from_tensors({**state, name: tensor}, "odd.safetensors")


def test_a_file_that_is_no_state_dict_is_a_sentence(tmp_path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    torn = [whole[:cut] for cut in range(0, len(whole), 7)]
    for content in (b"", b"words", b"PK\x03\x04", b"h\xff.", *torn):
        path.write_bytes(content)
        with pytest.raises(DonorError, match=r"w\.pth"):
            load_donor(str(path))


class _Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_executes_code_is_refused(tmp_path, capsys) -> None:
    torch.save({"state_dict": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(DonorError, match="without executing code"):
        load_donor(str(tmp_path / "evil.pth"))
    assert "executed" not in capsys.readouterr().out


def test_a_donor_decides_every_field_or_the_configuration_does() -> None:
    """Of a run that goes on without its donor; a new field is one or the other."""
    donor = donor_from_timm(vit(), "vit")
    asked = NetworkConfig(tile=(8, 32, 32), patch=(4, 8, 8), half_channels=8)
    begun = config_for(donor, asked)
    assert config_like(begun, asked) == begun
    every = {field.name for field in dataclasses.fields(NetworkConfig)}
    assert {*donor.encoder_fields(), *OWN_FIELDS, "patch", "taps"} == every
    assert not set(donor.encoder_fields()) & set(OWN_FIELDS)

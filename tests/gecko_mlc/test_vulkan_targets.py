"""What a Vulkan target asks of a device, where its limits are read from one."""

from __future__ import annotations

from typing import Any

import pytest

from gecko_mlc.compile.cache import target_name
from gecko_mlc.compile.gpu_targets import VulkanTarget
from gecko_mlc.compile.targets import TargetError, resolve
from gecko_mlc.runtime import vulkan

# What drivers say of an NVIDIA GPU; the others differ from it in subgroups.
NVIDIA = {
    "threads": 1024,
    "shared": 49152,
    "push_constants": 256,
    "subgroup": 32,
    "subgroup_min": 32,
    "subgroup_max": 32,
    "subgroup_choice": True,
    "cooperative_matrix": True,
    "cooperative_matrices": [
        {
            "m": 16,
            "n": 16,
            "k": 16,
            "a": "float16",
            "b": "float16",
            "c": "float32",
            "result": "float32",
            "scope": "subgroup",
            "saturating": False,
        }
    ],
}


def from_device(monkeypatch: pytest.MonkeyPatch, **limits: Any) -> VulkanTarget:
    monkeypatch.setattr(vulkan, "describe", lambda index: NVIDIA | limits)
    target = resolve("vulkan-from-device")
    assert isinstance(target, VulkanTarget)
    return target


def test_this_machines_device() -> None:
    """Lavapipe: what its preset says."""
    found, preset = resolve("vulkan-from-device"), resolve("vulkan-lavapipe")
    assert isinstance(found, VulkanTarget) and isinstance(preset, VulkanTarget)
    assert (found.threads, found.shared, found.subgroup, found.cooperative_matrix) == (
        preset.threads, preset.shared, preset.subgroup, preset.cooperative_matrix,
    )  # fmt: skip


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(vulkan.VulkanError, match="vulkan:7"):
        resolve("vulkan-from-device:7")


@pytest.mark.parametrize(
    ("least", "most", "choice", "subgroup"),
    [(32, 32, True, 32), (32, 64, True, 32), (8, 32, True, 32), (64, 128, True, 0),
     (64, 64, False, 0), (16, 16, False, 16)],
)  # fmt: skip
def test_subgroups(
    least: int, most: int, choice: bool, subgroup: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of at most 32 threads, the largest that can be had; without one, none is counted on."""
    target = from_device(
        monkeypatch,
        subgroup=most,
        subgroup_min=least,
        subgroup_max=most,
        subgroup_choice=choice,
    )
    assert target.subgroup == subgroup
    assert target.cooperative_matrix == (subgroup == 32)


def test_cooperative_matrices_of_other_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    other = NVIDIA["cooperative_matrices"][0] | {"n": 8}  # type: ignore[index]
    assert not from_device(monkeypatch, cooperative_matrices=[other]).cooperative_matrix


def test_names() -> None:
    with pytest.raises(TargetError, match="number of a device"):
        resolve("vulkan-nvidia:1")
    assert target_name("vulkan") == "vulkan-from-device"
    assert target_name("vulkan:1") == "vulkan-from-device:1"
    assert target_name("vulkan-nvidia") == "vulkan-nvidia"

import jax
import pytest

from mllm_jax.parallel.mesh import MeshConfig, make_mesh, mesh_shape


def test_minus_one_takes_the_devices_that_are_left():
    assert mesh_shape(MeshConfig(data=-1, fsdp=2, tensor=2), devices=8) == (2, 2, 1, 2)
    assert mesh_shape(MeshConfig(data=1, fsdp=-1), devices=8) == (1, 8, 1, 1)


def test_the_mesh_has_auto_axes_over_all_devices():
    mesh = make_mesh(MeshConfig(fsdp=4))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "sequence": 1, "tensor": 1}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_wrong_products_say_the_numbers():
    with pytest.raises(ValueError, match="data 3 x tensor 2 needs 6 devices, but there are 8"):
        mesh_shape(MeshConfig(data=3, tensor=2), devices=8)
    with pytest.raises(ValueError, match=r"multiply to 3, which does not divide the 8 devices"):
        mesh_shape(MeshConfig(data=-1, fsdp=3), devices=8)


def test_two_axes_cannot_both_fill_and_none_can_be_zero():
    with pytest.raises(ValueError, match="data and fsdp are both -1"):
        MeshConfig(data=-1, fsdp=-1)
    with pytest.raises(ValueError, match="mesh axis tensor is 0"):
        MeshConfig(tensor=0)

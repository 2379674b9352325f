"""Qwen3 from and to a Hugging Face folder of safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from comem_jax.errors import UserError
from comem_jax.models.config import Qwen3Config, read_json
from comem_jax.models.kv_heads import repeat_kv_heads, spread_kv_heads, unparted
from comem_jax.models.quantize import quantize_weight
from comem_jax.models.qwen3 import Qwen3, random_weight
from comem_jax.models.remat import Remat
from comem_jax.models.sharding import weight_sharding
from comem_jax.models.weights import Weight, weight_table

Index = tuple[slice, ...]


def load(
    path: str | Path,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    *,
    remat: Remat = "none",
    int8: bool = False,
    spread: bool = False,
) -> Qwen3:
    """Return the model in the Hugging Face folder `path`, its weights as `dtype`, on `mesh` where one is given.

    Files are memory-mapped and only the parts that this process's devices hold are read, weight by weight. With `int8`
    the weights of products are kept as int8 and activations are `dtype`: to serve, not to train or save. With `spread`,
    to serve too, kv heads are repeated where `mesh` has several devices for each. Raises `UserError` for a missing
    folder, a tensor that is missing, unexpected or of the wrong shape, or a mesh that does not divide a weight.
    """
    config = Qwen3Config.from_folder(path)
    with ExitStack() as stack:
        tensors = _open_tensors(Path(path), stack)
        _check_tensors(tensors, weight_table(config), Path(path), config)

        def make(weight: Weight, place: NamedSharding | None) -> jax.Array:
            return _load_weight(weight, tensors, dtype, place)

        wide = spread_kv_heads(config, mesh) if spread else config
        return from_arrays(wide, _make_arrays(config, wide, mesh, int8, make), remat=remat)


def load_dummy(
    path: str | Path, dtype: Any = jnp.float32, mesh: Mesh | None = None, *, int8: bool = False, spread: bool = False
) -> Qwen3:
    """Return a model of random weights in the shape that `path`'s `config.json` says, to measure speed with.

    The folder needs no weights. The numbers are the same every time, on every mesh; the rest is as in `load`.
    """
    config, rngs = Qwen3Config.from_folder(path), nnx.Rngs(0)

    def make(weight: Weight, place: NamedSharding | None) -> jax.Array:
        def draw(key: jax.Array) -> jax.Array:
            return random_weight(weight, nnx.Rngs(key), dtype)[...]

        array: jax.Array = jax.jit(draw, out_shardings=place)(rngs.params())
        return array

    wide = spread_kv_heads(config, mesh) if spread else config
    return from_arrays(wide, _make_arrays(config, wide, mesh, int8, make))


def quantize(model: Qwen3) -> Qwen3:
    """Return a copy of `model` with int8 weights, as `load` makes one with `int8`."""
    arrays, table = to_arrays(model), weight_table(model.config)
    kept = [quantize_weight(name, weight, arrays[name]) for name, weight in table.items()]
    return from_arrays(model.config, {name: array for part in kept for name, array in part.items()})


def save(model: Qwen3, path: str | Path, dtype: Any = None) -> None:
    """Write `model` as a Hugging Face folder (made where missing), its weights as `dtype` or as they are.

    Each file appears whole or not at all. Raises `UserError` for a model of int8 weights.
    """
    arrays = to_arrays(model)
    if arrays["embedding"].dtype == jnp.int8:
        raise UserError(f"A model of int8 weights cannot be written to {path}; write the one it was made from.")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = jnp.dtype(arrays["norm"].dtype if dtype is None else dtype)
    tensors: dict[str, np.ndarray] = {}
    for name, weight in weight_table(model.config).items():
        tensors |= _to_hf(weight, np.asarray(arrays[name]).astype(dtype))
    _write(folder / "model.safetensors", lambda file: save_file(tensors, file, metadata={"format": "pt"}))
    _write(folder / "config.json", lambda file: file.write_text(model.config.to_json(dtype.name), encoding="utf-8"))
    _write_generation_config(folder, model.config)


def from_arrays(config: Qwen3Config, arrays: dict[str, jax.Array], *, remat: Remat = "none") -> Qwen3:
    """Return a model of `arrays`: one for each path of `weight_table(config)`, and the scales of int8 ones."""
    graphdef, state = nnx.split(abstract_model(config, remat=remat))
    model = nnx.merge(graphdef, _map_weights(lambda name, param: param.replace(arrays[name]), state))
    for name in arrays.keys() - weight_table(config).keys():
        of_layers = name.startswith("layers.")
        scale = nnx.data(nnx.Param(arrays[name]))
        setattr(model.layers if of_layers else model, name.removeprefix("layers."), scale)
    return model


def to_arrays(model: Qwen3) -> dict[str, jax.Array]:
    """Return the model's arrays under the paths of `weight_table`."""
    arrays: dict[str, jax.Array] = {}
    _map_weights(lambda name, param: arrays.setdefault(name, param[...]), nnx.state(model, nnx.Param))
    return arrays


def abstract_model(config: Qwen3Config, dtype: Any = jnp.float32, *, remat: Remat = "none") -> Qwen3:
    """Return a model whose weights are shapes alone."""
    return nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0), dtype=dtype, remat=remat))


def _make_arrays(
    config: Qwen3Config,
    wide: Qwen3Config,
    mesh: Mesh | None,
    int8: bool,
    make: Callable[[Weight, NamedSharding | None], jax.Array],
) -> dict[str, jax.Array]:
    """Return the arrays of a model of `wide`, which has the kv heads of `config` or more, weight by weight on `mesh`.

    `make` returns a weight of `config` where it is told to lie.
    """
    arrays: dict[str, jax.Array] = {}
    wide_table = weight_table(wide)
    for name, weight in weight_table(config).items():
        target = wide_table[name]
        if target.shape == weight.shape:
            array = make(weight, _place(mesh, name, weight))
        else:
            array = make(weight, _place(mesh, name, unparted(weight)))
            array = repeat_kv_heads(array, weight, wide.num_key_value_heads, _place(mesh, name, target))
        arrays |= quantize_weight(name, target, array) if int8 else {name: array}
    return arrays


def _place(mesh: Mesh | None, name: str, weight: Weight) -> NamedSharding | None:
    return None if mesh is None else weight_sharding(mesh, name, weight.shape, weight.axes)


def _map_weights(function: Callable[[str, Any], Any], state: Any) -> Any:
    def on_leaf(path: tuple[Any, ...], param: Any) -> Any:
        return function(jax.tree_util.keystr(path, simple=True, separator="."), param)

    return jax.tree_util.tree_map_with_path(on_leaf, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def _open_tensors(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Return a lazy slice of every tensor in the folder's safetensors, by name; `stack` keeps the files open."""
    tensors: dict[str, Any] = {}
    for file in _tensor_files(folder):
        try:
            opened = stack.enter_context(safe_open(file, framework="numpy"))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read as safetensors: {error}.") from error
        names = opened.keys()
        tensors |= {name: opened.get_slice(name) for name in names}
    return tensors


def _tensor_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        if not single.is_file():
            raise UserError(f"There is neither model.safetensors nor {index.name} in {folder}.")
        return [single]
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise UserError(f"{index} names {', '.join(missing) or 'no file'}, which is not in {folder}.")
    return [folder / name for name in names]


def _check_tensors(tensors: dict[str, Any], table: dict[str, Weight], folder: Path, config: Qwen3Config) -> None:
    expected = {name: weight.hf_shape for weight in table.values() for name in weight.names()}
    # Published tied models carry a copy of the embedding as lm_head.
    unexpected = sorted(set(tensors) - set(expected) - ({"lm_head.weight"} if config.tie_word_embeddings else set()))
    missing = sorted(set(expected) - set(tensors))
    for names, complaint in ((missing, "lacks"), (unexpected, "has the unexpected")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"The model in {folder} {complaint} tensor {names[0]}{more}, by its config.json.")
    for name, shape in expected.items():
        found = tuple(tensors[name].get_shape())
        if found != shape:
            raise UserError(f"Tensor {name} in {folder} has shape {found}, but its config.json asks for {shape}.")


def _load_weight(weight: Weight, tensors: dict[str, Any], dtype: Any, place: NamedSharding | None) -> jax.Array:
    if place is None:
        return jnp.asarray(_read_part(weight, tensors, (), dtype))
    places: dict[str, list[tuple[Any, Any]]] = {}
    for device, index in place.addressable_devices_indices_map(weight.shape).items():
        places.setdefault(str(index), []).append((device, index))
    shards: list[jax.Array] = []
    for copies in places.values():  # each part is read once, and is gone from the host before the next one
        part = _read_part(weight, tensors, copies[0][1], dtype)
        shards += jax.block_until_ready([jax.device_put(part, device) for device, _ in copies])
    return jax.make_array_from_single_device_arrays(weight.shape, place, shards)


def _read_part(weight: Weight, tensors: dict[str, Any], index: Index, dtype: Any) -> np.ndarray:
    """Read the part `index` (slices of our shape) of a weight from the files' tensors, tensor by tensor."""
    index = (*index, *(slice(None),) * (len(weight.shape) - len(index)))
    cuts = [range(n)[cut] for n, cut in zip(weight.shape, index, strict=True)]
    stack, cuts = cuts[: weight.stacked], cuts[weight.stacked :]
    part = np.empty([len(cut) for cut in (*stack, *cuts)], dtype)
    for place, numbers in zip(np.ndindex(*map(len, stack)), product(*stack), strict=True):
        part[place] = _read_tensor(weight, tensors[weight.hf.format(*numbers)], cuts)
    return part


def _read_tensor(weight: Weight, tensor: Any, cuts: list[range]) -> np.ndarray:
    shape = [len(cut) for cut in cuts]
    if not weight.inputs:
        return np.asarray(tensor[tuple(slice(cut.start, cut.stop) for cut in cuts)]).reshape(shape)
    rows = _flat(cuts[weight.inputs :], weight.part_shape[weight.inputs :])
    columns = _flat(cuts[: weight.inputs], weight.part_shape[: weight.inputs])
    return np.asarray(tensor[rows, columns]).T.reshape(shape)


def _flat(cuts: list[range], shape: tuple[int, ...]) -> slice:
    """Return the slice that `cuts` are once the axes of `shape` are flattened; only the first axis may be cut."""
    width = prod(shape[1:])
    return slice(cuts[0].start * width, cuts[0].stop * width)


def _to_hf(weight: Weight, array: np.ndarray) -> dict[str, np.ndarray]:
    parts = array.reshape(-1, *weight.part_shape)
    if weight.inputs:
        parts = parts.reshape(len(parts), *reversed(weight.hf_shape)).swapaxes(1, 2)
    # safetensors writes the memory as it lies, so a transposed view must become an array of its own
    return {name: np.ascontiguousarray(part) for name, part in zip(weight.names(), parts, strict=True)}


def _write_generation_config(folder: Path, config: Qwen3Config) -> None:
    if config.eos_token_id is not None:
        text = json.dumps(config.special_tokens(), indent=2) + "\n"
        _write(folder / "generation_config.json", lambda file: file.write_text(text, encoding="utf-8"))


def _write(file: Path, write: Callable[[Path], Any]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    write(temporary)
    temporary.replace(file)

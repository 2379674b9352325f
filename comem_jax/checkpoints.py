"""Training checkpoints with Orbax, and the way between them and Hugging Face folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx

from comem_jax.chat import copy_tokenizer
from comem_jax.errors import UserError
from comem_jax.models.config import Qwen3Config
from comem_jax.models.loading import from_arrays, load, save
from comem_jax.models.weights import weight_table

# A step has three items: the parameters, which export reads alone; every other array; and the JSON data state.
PARAMS, REST, DATA = "params", "rest", "data_state"
# Beside the steps, so that a checkpoint folder can be exported without the folder training began from.
MODEL_FOLDER = "model"
CONFIG_FILES = ("config.json", "generation_config.json")


class Checkpointer:
    """Saves and restores the newest states of a training run in `folder`; use it as a context manager or `close` it.

    With `asynchronous` a save returns once the arrays are copied, and writes in the background; a step appears in the
    folder only when it is whole. The newest `keep` steps are kept.
    """

    def __init__(self, folder: str | Path, keep: int = 2, asynchronous: bool = True) -> None:
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=asynchronous)
        handlers = {
            PARAMS: ocp.StandardCheckpointHandler(),
            REST: ocp.StandardCheckpointHandler(),
            DATA: ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def save(self, step: int, state: dict[str, Any], data_state: dict[str, Any] | None = None) -> None:
        """Save `state` (a tree of arrays under each name; keys may be typed) and the JSON `data_state` as `step`.

        Raises `UserError` where the folder already holds this step or a later one.
        """
        newest = self._manager.latest_step()
        if newest is not None and newest >= step:
            raise UserError(f"{self.folder} already holds step {newest}, so step {step} cannot be saved in it.")
        items: dict[str, Any] = {DATA: ocp.args.JsonSave({"value": data_state})}
        arrays = {path: _plain(leaf) for path, leaf in _flatten(state).items()}
        items |= {name: ocp.args.StandardSave(part) for name, part in _parts(arrays).items()}
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, like: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any] | None] | None:
        """Return the newest `(step, state, data_state)`, bitwise as saved, or None where there is none.

        `like` has the structure, shapes and dtypes of the state, as arrays or `jax.ShapeDtypeStruct`s; the restored
        arrays lie where those do. Raises `UserError` where the checkpoint holds something else.
        """
        step = self._latest()
        if step is None:
            return None
        wanted = _abstract(_flatten(like))
        self._check(step, wanted)
        items = {name: ocp.args.StandardRestore(part) for name, part in _parts(wanted).items()}
        found = self._manager.restore(step, args=ocp.args.Composite(**items, **{DATA: ocp.args.JsonRestore()}))
        arrays = {path: array for name in items for path, array in found[name].items()}
        return step, _unflatten(like, arrays), found[DATA]["value"]

    def restore_params(self) -> dict[str, jax.Array]:
        """Return the newest step's `params` alone, under their dotted paths, on the default device."""
        step = self._latest()
        if step is None:
            raise UserError(f"There is no checkpoint in {self.folder}.")
        saved = _parts(self._saved(step)).get(PARAMS)
        if saved is None:
            raise UserError(f"Step {step} in {self.folder} holds no params.")
        items = {PARAMS: ocp.args.StandardRestore(_abstract(saved))}
        arrays = self._manager.restore(step, args=ocp.args.Composite(**items))[PARAMS]
        return {path.removeprefix(f"{PARAMS}.").removesuffix(".value"): array for path, array in arrays.items()}

    def wait(self) -> None:
        """Return when every save is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for every save and let go of the folder."""
        self._manager.close()

    def _latest(self) -> int | None:
        self.wait()  # Orbax counts a step from the moment its save begins
        step: int | None = self._manager.latest_step()
        return step

    def _saved(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        items = self._manager.item_metadata(step)
        trees = [item.tree for name, item in items.items() if name != DATA and item is not None]
        return {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for tree in trees for path, x in tree.items()}

    def _check(self, step: int, asked: dict[str, jax.ShapeDtypeStruct]) -> None:
        where = f"Step {step} in {self.folder}"
        saved = self._saved(step)
        for paths, complaint in ((asked.keys() - saved.keys(), "lacks"), (saved.keys() - asked.keys(), "also holds")):
            if paths:
                raise UserError(f"{where} {complaint} {min(paths)}; it was saved by a run of another configuration.")
        for path, leaf in asked.items():
            found = saved[path]
            if (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
                raise UserError(
                    f"{where} has {path} as {found.dtype}{list(found.shape)}, not {leaf.dtype}{list(leaf.shape)}."
                )


def describe(folder: str | Path, model_folder: str | Path) -> None:
    """Copy the model's configuration and tokenizer into a checkpoint folder, for `export`; do it as training starts."""
    Qwen3Config.from_folder(model_folder)
    target = Path(folder) / MODEL_FOLDER
    copy_tokenizer(model_folder, target)
    for name in CONFIG_FILES:
        if (Path(model_folder) / name).is_file():
            shutil.copyfile(Path(model_folder) / name, target / name)


def export(checkpoint: str | Path, out: str | Path, dtype: Any = None) -> None:
    """Write the newest step of a described checkpoint folder as the Hugging Face folder `out`.

    Weights are written as `dtype`, or as they were trained. Raises `UserError` where the folder holds no step, was
    not described, or holds parameters of another model.
    """
    model_folder = Path(checkpoint) / MODEL_FOLDER
    if not model_folder.is_dir():
        raise UserError(f"{checkpoint} is not a checkpoint folder: it holds no {MODEL_FOLDER}/ with a config.json.")
    config = Qwen3Config.from_folder(model_folder)
    with Checkpointer(checkpoint) as checkpointer:
        arrays = checkpointer.restore_params()
    table = weight_table(config)
    for name in sorted(table.keys() | arrays.keys()):
        found = arrays[name].shape if name in arrays else None
        expected = table[name].shape if name in table else None
        if found != expected:
            raise UserError(f"{checkpoint} has {name} with shape {found}, but its config.json asks for {expected}.")
    save(from_arrays(config, arrays), out, dtype)
    copy_tokenizer(model_folder, out)


def import_(hf_folder: str | Path, out: str | Path, dtype: Any = jnp.float32) -> None:
    """Write the model in `hf_folder` as step 0 of a new checkpoint folder `out`, described, as `{"params": ...}`."""
    params = nnx.state(load(hf_folder, dtype), nnx.Param)
    describe(out, hf_folder)
    with Checkpointer(out) as checkpointer:
        checkpointer.save(0, {"params": params})


def _flatten(tree: Any) -> dict[str, Any]:
    """Return the leaves under dotted paths, so that named tuples and NNX states need no code of their own on disk."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _unflatten(like: Any, flat: dict[str, jax.Array]) -> Any:
    leaves = [_like(leaf, flat[path]) for path, leaf in _flatten(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _parts(flat: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Part leaves by the item that holds them; Orbax takes no empty item."""
    params = {path: leaf for path, leaf in flat.items() if path.split(".")[0] == PARAMS}
    rest = {path: leaf for path, leaf in flat.items() if path not in params}
    return {name: part for name, part in ((PARAMS, params), (REST, rest)) if part}


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _plain(leaf: Any) -> Any:
    """Return a typed key as the integers it is made of; they are all that a file can hold."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _like(leaf: Any, array: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array


def _abstract(flat: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        shape = jax.eval_shape(_plain, leaf)
        sharding = None if _is_key(leaf) else getattr(leaf, "sharding", None)
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding or default)

    return {path: abstract(leaf) for path, leaf in flat.items()}

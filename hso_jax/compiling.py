"""How programs are traced and compiled whatever JAX is set to, and random draws that are made so."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache
from jaxlib import utils

from hso_jax.files import write_whole

Made = TypeVar("Made")

_LOG_OF_JAX = "1"  # the level that importing JAX sets where there is none
_FATAL = 3

RANDOM = "threefry2x32"
"""The generator of every random key here. JAX's default may be "rbg" (on TPUs), whose draws under `vmap` depend on the
neighbours in the batch."""


def random_key(seed: Any) -> Array:
    """The key of a seed."""
    return jax.random.key(seed, impl=RANDOM)


def under_jax_defaults(function: Callable[..., Made]) -> Callable[..., Made]:
    """The function, traced by JAX's default rules: a caller's strict promotion or search for NaN is for its own code.

    NaN is a value here (no start yet, a lane that failed), and integers meet floats.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Made:
        with (
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            jax.debug_nans(False),
            jax.debug_infs(False),
        ):
            return function(*args, **kwargs)

    return call


def compiler_options(platform: str) -> dict[str, int] | None:
    """On the CPU LLVM's full optimisation doubles the compilation and gains nothing in the run (measured)."""
    return {"xla_backend_optimization_level": 1} if platform == "cpu" else None


def stored(program: Callable[..., Made], name: str, *arguments: Any) -> Callable[..., Made]:
    """The jitted program, compiled for arguments like these: as an earlier process left it in JAX's cache folder.

    JAX's own cache spares the compiler, but must trace a program to find it: most of a short search. This one finds it
    by what it was traced from. Whoever can write into the folder can run code here; JAX's own cache is no different.

    Args:
        program: what `jax.jit` made.
        name: tells all that the trace depends on, beside the arguments and the sources. One with a function in it
            ("<function ...") does not, and the program is not kept.
        arguments: to call it with; their shapes, types and places count.
    """
    config = jax.config.values
    folder = config["jax_compilation_cache_dir"] if config["jax_enable_compilation_cache"] else None
    if not folder or "<" in name or jax.process_count() > 1:
        return program
    leaves, tree = jax.tree.flatten((arguments, {}))
    places = [f"{leaf.dtype} {leaf.shape} {leaf.sharding}" for leaf in leaves]
    settings = sorted(f"{key} {getattr(jax.config, key, None)}" for key in config if "cache" not in key)
    about = repr((name, str(tree), places, settings, sorted(os.environ.get("XLA_FLAGS", "").split()), _sources()))
    return _stored(program, Path(folder, f"hso-jax-{hashlib.sha256(about.encode()).hexdigest()[:32]}"), arguments, tree)


@functools.lru_cache(maxsize=8)
def _in_memory(path: Path) -> list[Any]:
    return []


def _stored(program: Any, path: Path, arguments: Any, tree: Any) -> Any:
    memory = _in_memory(path)
    if not memory:
        try:
            content = path.read_bytes()
            if content != _signed(path, content[_DIGEST:]):
                raise ValueError("damaged, or of another program")
            payload, result = pickle.loads(content[_DIGEST:])
            if _LAPACK in payload:
                _load_lapack()
            memory.append(serialize_executable.deserialize_and_load(payload, tree, result))
        except Exception:  # there is none, it is cut off, ...: made again
            memory.append(_compiled_anew(program.lower(*arguments)))
            with contextlib.suppress(Exception):  # no room, or a device whose programs cannot be written
                payload, _, result = serialize_executable.serialize(memory[0])
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, _signed(path, pickle.dumps((payload, result))))
    return memory[0]


_DIGEST = hashlib.sha256().digest_size


def _signed(path: Path, content: bytes) -> bytes:
    """The content behind its digest: JAX loads machine code with a wrong byte in it, and runs another program's."""
    return hashlib.sha256(path.name.encode() + content).digest() + content


_LAPACK = b"lapack_"  # what the names of its functions begin with in a stored program


@functools.cache
def _load_lapack() -> None:
    """On the CPU, JAX finds LAPACK's functions when it first lowers one: a quarter of a second, for SciPy's import.

    A stored program that calls one before that is a segmentation fault (JAX 0.10).
    """
    jax.jit(jnp.linalg.eigh).lower(jax.ShapeDtypeStruct((2, 2), np.float32))


def _compiled_anew(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The program, compiled here whatever JAX's own cache has.

    A program that was read from a file lacks its kernels when it is written to a second one (JAX 0.10 on the CPU says
    "NOT_FOUND: Function ... not found" when that one runs).
    """
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX looks at the setting once
    try:
        return lowered.compile()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


def _files() -> str:
    """A digest of this package's files."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


_FILES = _files()  # as they are imported: a program that an older file made is not kept as a newer one's


@functools.cache
def _sources() -> list[str]:
    """What programs are made of: this package's files, JAX, the packages it uses, and the machine."""
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib", "evosax", "optax", "numpy")]
    device = jax.devices()[0]
    about = Path("/proc/cpuinfo")  # a home folder may serve machines with other instructions
    lines = about.read_text().splitlines() if about.exists() else []
    cpu = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return [_FILES, *versions, device.device_kind, device.client.platform_version, cpu]


def platform() -> str:
    """The platform that JAX runs on.

    Raises:
        ValueError: where the one that was asked for is not there, naming the variable that asks for it.
    """
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError, KeyError) as error:
        set_by = next((name for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(name)), None)
        name = set_by or "jax_platforms"
        asked = f"{name} is {os.environ[name]!r}" if set_by else "jax_platforms is set"
        raise ValueError(
            f"{asked}, and JAX finds no such device here: unset {name}, or install JAX for the device"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without XLA's log, which asks for a bug report where a busy machine compiles for two minutes.

    What is wrong is an exception all the same. A log level that the user has set stays.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != _LOG_OF_JAX:
        yield
        return
    utils.absl_set_min_log_level(_FATAL)
    try:
        yield
    finally:
        utils.absl_set_min_log_level(int(_LOG_OF_JAX))


def jit(function: Callable[..., Made], **options: Any) -> Callable[..., Made]:
    """`jax.jit` with `compiler_options` of the platform, which is asked for at the first call, not at import."""

    @functools.cache
    def compiled(name: str) -> Callable[..., Made]:
        return jax.jit(function, compiler_options=compiler_options(name), **options)

    @functools.wraps(function)
    @under_jax_defaults
    def call(*args: Any, **kwargs: Any) -> Made:
        return compiled(platform())(*args, **kwargs)

    return call


@functools.partial(jit, static_argnames=("shape", "dtype"))
def normal(key: Array, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    """`jax.random.normal`; in float32 whatever JAX's default is, so that a key has the same values."""
    return jax.random.normal(key, shape, dtype)


@functools.partial(jit, static_argnames=("shape", "dtype"))
def uniform(key: Array, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    """`jax.random.uniform`, likewise."""
    return jax.random.uniform(key, shape, dtype)

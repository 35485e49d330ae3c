"""ComfyUI nodes. Link this folder into ComfyUI's `custom_nodes`; see README.md beside this file."""

# ComfyUI loads the folder by its path, as a package of another name; elsewhere it is `bridge.comfyui`.
try:
    from .nodes import NODE_CLASS_MAPPINGS as NODE_CLASS_MAPPINGS
    from .nodes import NODE_DISPLAY_NAME_MAPPINGS as NODE_DISPLAY_NAME_MAPPINGS
except ModuleNotFoundError as error:
    if error.name not in ("hso_jax", "lazy_loader"):
        raise
    raise ModuleNotFoundError(
        f"the HSO nodes need {error.name}: in ComfyUI's Python run `pip install lazy-loader`, and with the path of "
        "your clone of hso-jax `pip install --no-deps PATH`"
    ) from error

"""ComfyUI nodes. Link this folder into ComfyUI's `custom_nodes`; see README.md beside this file."""

# ComfyUI loads the folder by its path, as a package of another name; elsewhere it is `bridge.comfyui`.
from .nodes import NODE_CLASS_MAPPINGS as NODE_CLASS_MAPPINGS
from .nodes import NODE_DISPLAY_NAME_MAPPINGS as NODE_DISPLAY_NAME_MAPPINGS

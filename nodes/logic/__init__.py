"""What the nodes do, without knowing ComfyUI: everything here is tested without it."""

current_unet = None
"""What computes in place of the checkpoint's network, such as a compiled one."""

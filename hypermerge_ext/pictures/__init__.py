"""Pictures of hyper-models: what is drawn is computed without any library, matplotlib only draws it."""

"""Everything that only a GPU can show, in one go; not yet run on one."""

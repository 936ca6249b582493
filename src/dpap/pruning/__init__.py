"""Death made real: masks that neither leak nor revive, and physical removal."""

"""What a run is, completely, and its TOML form.

`to_toml(config)` writes every setting that applies, so the `config.toml` of a run folder re-runs it; `read_config`
reads one back. Settings that may be absent are written as the word "none".
"""

from dpap.config.files import (
    checked,
    from_dict,
    merged,
    missing_settings,
    override,
    read_config,
    read_toml,
    to_dict,
    to_toml,
)
from dpap.config.sections import (
    LEVELS,
    Config,
    DataConfig,
    DevelopmentConfig,
    ModelConfig,
    OptimizerConfig,
    TargetConfig,
)

__all__ = [
    "LEVELS",
    "Config",
    "DataConfig",
    "DevelopmentConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TargetConfig",
    "checked",
    "from_dict",
    "merged",
    "missing_settings",
    "override",
    "read_config",
    "read_toml",
    "to_dict",
    "to_toml",
]

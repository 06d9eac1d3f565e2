"""Those who generate text, all behind the `Provider` port of `service.core.ports`."""

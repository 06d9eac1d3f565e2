"""`kotae settings` and `kotae token`."""

from typing import Annotated

import typer

from service.core.auth.jwts import mint
from service.core.auth.principals import Role
from service.core.settings import Settings, describe, load_settings


def token(
    user: Annotated[str, typer.Option(help="Whose token it is.")],
    role: Annotated[Role, typer.Option(help="user or admin.")] = Role.USER,
    minutes: Annotated[float, typer.Option(min=0.1, max=1440, help="Until it ends.")] = 60,
) -> None:
    """Make a JWT for development, by KOTAE_JWT_SECRET."""
    print(mint(load_settings(), user, role, minutes * 60))


def print_settings() -> None:
    """Print every setting as it is in force. Secrets are masked."""
    loaded = load_settings()
    values = {name: getattr(loaded, name) for name in Settings.model_fields}
    for (environment_name, _, text), value in zip(describe(), values.values(), strict=True):
        print(f"{environment_name}={'' if value is None else value}\n    {text}")


def print_env_example() -> None:
    """Print `.env.example`."""
    print(env_example())


def env_example() -> str:
    """The text of `.env.example`: every setting, its help, its default."""
    lines = ["# Every setting, with its default. Copy to .env and uncomment what you change; the environment wins over the file."]
    for name, default, text in describe():
        lines += ["", f"# {text}", f"# {name}={default}"]
    return "\n".join(lines)

"""Authorities, certificates and tokens for tests, as `specfleet certs` and `specfleet token` make them."""

from __future__ import annotations

from pathlib import Path

from specfleet.cli.authority import Authority, write_pair
from specfleet.client import Tls
from specfleet.wire.auth import hash_of, new_token

HOSTS = ("localhost", "127.0.0.1")


class Certificates:
    """A folder with an authority of its own, and what it signed."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.authority = Authority.new(name, 30)
        self.authority.save(folder)

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def server(self, *hosts: str, stem: str = "server", days: float = 1.0) -> tuple[Path, Path]:
        """Certificate and key; negative `days` are over."""
        names = hosts or HOSTS
        write_pair(self.folder, stem, *self.authority.issue(names[0], "server", days, names))
        return self.folder / f"{stem}.pem", self.folder / f"{stem}.key"

    def client(self, name: str, days: float = 1.0) -> tuple[Path, Path]:
        write_pair(self.folder, name, *self.authority.issue(name, "client", days))
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def tls(self, pair: tuple[Path, Path] | tuple[None, None] = (None, None)) -> Tls:
        """Trust in this authority, and what to show."""
        return Tls.from_files(self.ca, *pair)


class Tokens:
    """A tokens file, and the tokens that nobody else knows."""

    def __init__(self, path: Path, *names: str) -> None:
        self.path = path
        self.tokens: dict[str, str] = {}
        self.write(*names)

    def write(self, *names: str) -> None:
        """The file has exactly these names from now on; those it had keep their tokens."""
        self.tokens = {name: self.tokens.get(name) or new_token() for name in names}
        lines = [f"{name} {hash_of(token)}\n" for name, token in self.tokens.items()]
        self.path.write_text("# who may call\n" + "".join(lines))

    def __getitem__(self, name: str) -> str:
        return self.tokens[name]

"""Settings that take effect while programs run, and are changed without overwriting others.

python scripts/recipes/live_settings.py [HOST:PORT]
"""

import sys

import anyio

from logd.errors import CompareFailedError
from logd_client import connect


async def main(bootstrap: str) -> None:
    async with connect(bootstrap) as program, connect(bootstrap) as person:
        settings = program.kv("recipes")
        now = await settings.prefix("settings/")
        async with settings.watch(prefix="settings/", revision=now.revision + 1) as changes:
            created = await person.kv("recipes").put("settings/colour", b"blue")
            await person.kv("recipes").cas("settings/colour", b"green", revision=created)
            try:
                await person.kv("recipes").cas("settings/colour", b"red", revision=created)
            except CompareFailedError as error:
                print(f"somebody else was faster: {error}")
            for expected in (b"blue", b"green"):
                event = await changes.next()
                assert event is not None
                assert event.value == expected
                print(f"{event.name.decode()} is {event.value.decode()}")
        await settings.delete("settings/colour")


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:] or ["127.0.0.1:7171"])

"""What only the real network does: resolve names, speak IPv6, hand buffers to the kernel."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import pytest
import trio

from logd.limits import KEEP_ALIVE_IDLE_S
from logd.runtime.network import TcpNetwork, TcpStream
from logd.types import HostPort


def run(scenario: Callable[[TcpNetwork], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(10):
            await scenario(TcpNetwork())

    trio.run(main)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def say_hello(network: TcpNetwork, listen_host: str, connect_host: str) -> None:
    listener = await network.listen(HostPort(listen_host, 0))
    near = await network.connect(HostPort(connect_host, listener.address.port))
    far = await listener.accept()
    listener.close()
    buffer = bytearray(10)
    await near.send([b"hello"])
    assert await far.receive_into(memoryview(buffer)) == 5
    near.abort()
    far.abort()


@pytest.mark.parametrize("connect_host", ["localhost", "127.0.0.1"])
def test_listening_on_localhost_is_reached_by_name_and_by_number(connect_host: str) -> None:
    async def scenario(network: TcpNetwork) -> None:
        await say_hello(network, "localhost", connect_host)

    run(scenario)


def test_the_kernel_finds_out_that_a_quiet_peer_has_lost_power() -> None:
    async def scenario(network: TcpNetwork) -> None:
        listener = await network.listen(HostPort("127.0.0.1", 0))
        near = await network.connect(listener.address)
        far = await listener.accept()
        for stream in (near, far):
            assert isinstance(stream, TcpStream)
            assert stream._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            option = stream._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            assert option == KEEP_ALIVE_IDLE_S
            stream.abort()
        listener.close()

    run(scenario)


@pytest.mark.skipif(not has_ipv6(), reason="the machine has no IPv6")
@pytest.mark.parametrize(("listen_host", "connect_host"), [("::1", "::1"), ("::", "127.0.0.1")])
def test_ipv6_addresses_are_addresses(listen_host: str, connect_host: str) -> None:
    async def scenario(network: TcpNetwork) -> None:
        await say_hello(network, listen_host, connect_host)

    run(scenario)


@pytest.mark.parametrize("host", ["x" * 70 + ".example", "a..b"])
def test_what_is_no_host_name_is_an_error_and_not_a_crash(host: str) -> None:
    async def scenario(network: TcpNetwork) -> None:
        with pytest.raises(OSError, match="cannot resolve"):
            await network.connect(HostPort(host, 80))

    run(scenario)


def test_listening_on_an_address_of_another_machine_is_refused_with_the_reason() -> None:
    async def scenario(network: TcpNetwork) -> None:
        with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:0: Cannot assign"):
            await network.listen(HostPort("192.0.2.1", 0))

    run(scenario)


def test_a_cancelled_connect_leaves_no_socket_open() -> None:
    async def scenario(network: TcpNetwork) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            address = HostPort(*full.getsockname())
            is_answered = True
            while is_answered:  # Nobody accepts: soon there is no room to wait in.
                with trio.move_on_after(0.1) as patience:
                    (await network.connect(address)).abort()
                is_answered = not patience.cancelled_caught

    run(scenario)  # An open socket is a ResourceWarning, which fails the test.

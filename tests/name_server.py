"""A little name server on the loopback interface: answers over UDP with what the test says at that moment."""

from __future__ import annotations

import socket
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rrset


class NameServer:
    """``answers`` are lines of a zone by name and type: ``{("orders.test.", "A"): ["127.0.0.1"]}``. What is not there
    does not exist (NXDOMAIN). ``rcode`` other than NOERROR answers with that; ``is_silent`` with nothing."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], list[str]] = {}
        self.ttl = 1
        self.rcode = dns.rcode.NOERROR
        self.is_silent = False
        self.asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _serve(self) -> None:
        while True:
            data, peer = self._socket.recvfrom(4096)
            if data == b"end":
                return
            self.asked += 1
            if not self.is_silent:
                self._socket.sendto(self._answer(dns.message.from_wire(data)).to_wire(), peer)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        question = query.question[0]
        key = question.name.to_text(), question.rdtype.name
        if self.rcode != dns.rcode.NOERROR:
            answer.set_rcode(self.rcode)
        elif key not in self.answers:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif lines := self.answers[key]:
            answer.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", key[1], *lines))
        return answer

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"end", ("127.0.0.1", self.port))
        self._thread.join(10)
        self._socket.close()

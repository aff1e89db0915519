"""The codec: a line is either a message that encodes to the same line, or a bad message that can be answered."""

from fuzzing import fuzz

from scistream.protocol.codec import decode, encode, is_answer
from scistream.protocol.errors import BadMessageError, StreamError
from scistream.protocol.messages import Error
from support.message_strategies import EXAMPLES, line


def one_input(data: bytes) -> None:
    """One line."""
    is_answer(data)
    try:
        message = decode(data)
    except BadMessageError as bad:
        answer = Error(uid=bad.uid, seq=bad.seq, code=bad.code, msg=bad.msg)
        assert bad.msg
        assert decode(encode(answer).removesuffix(b"\n")) == answer
        return
    try:
        again = encode(message)
    except StreamError:
        return  # escapes may make it longer than it was
    assert again.count(b"\n") == 1
    assert decode(again.removesuffix(b"\n")) == message


if __name__ == "__main__":
    fuzz(one_input, [line(cmd) for cmd in EXAMPLES])

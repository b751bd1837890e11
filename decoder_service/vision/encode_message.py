"""The message that asks a replica to encode a picture, as bytes.

Knows protobuf. Does not know calls. One request goes to several replicas in turn, each of which has a token of its own.
"""

from diptych.v1 import vision_pb2 as pb


def serialized(sent: tuple[pb.EncodeRequest, bytes]) -> bytes:
    """A request with the token of the replica that it goes to: messages that follow each other are one message."""
    request, token = sent
    data = request.SerializeToString()
    return data + pb.EncodeRequest(shared_memory_token=token).SerializeToString() if token else data

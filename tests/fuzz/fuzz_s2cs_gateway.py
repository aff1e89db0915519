"""S2CS, with answers from one of its gateways, beside streams on another gateway."""

from fuzzing import fuzz_party, hostile_parties

if __name__ == "__main__":
    fuzz_party(hostile_parties.GatewayAtControlServer)

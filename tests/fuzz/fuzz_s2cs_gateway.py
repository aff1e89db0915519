"""S2CS, as one of its gateways may answer it, beside streams that are on another one."""

from fuzzing import fuzz_party, hostile_parties

if __name__ == "__main__":
    fuzz_party(hostile_parties.GatewayAtControlServer)

"""S2CS, with input from a peer without a certificate, beside streams of others."""

from fuzzing import fuzz_party, hostile_parties

if __name__ == "__main__":
    fuzz_party(hostile_parties.ApplicationAtControlServer)

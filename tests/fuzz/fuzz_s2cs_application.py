"""S2CS, as anybody without a certificate may speak to it, beside streams that are not his."""

from fuzzing import fuzz_party, hostile_parties

if __name__ == "__main__":
    fuzz_party(hostile_parties.ApplicationAtControlServer)

"""The application controllers of both sides, as an S2CS may answer them."""

from fuzzing import fuzz_party, hostile_parties

if __name__ == "__main__":
    fuzz_party(hostile_parties.Applications)

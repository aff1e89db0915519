"""The application controllers of both sides, with answers from an S2CS."""

from fuzzing import fuzz_party, hostile_parties

if __name__ == "__main__":
    fuzz_party(hostile_parties.Applications)

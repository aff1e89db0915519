"""S2UC, with answers from the S2CS of two facilities."""

from fuzzing import fuzz_party, hostile_parties

if __name__ == "__main__":
    fuzz_party(hostile_parties.UserClient)

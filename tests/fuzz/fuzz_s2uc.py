"""S2UC, as the S2CS of two facilities may answer it."""

from fuzzing import fuzz_party, hostile_parties

if __name__ == "__main__":
    fuzz_party(hostile_parties.UserClient)

//! The committed JSON Schema is the one that the program checks with. `TIERBOX_TEST_BLESS=1` writes it anew.

mod unit {
    use std::path::Path;

    use tierbox_core::Registry;
    use tierbox_local as _;
    use tierbox_profile::{Loader, Surroundings, schema};

    #[test]
    fn the_committed_schema_has_not_drifted() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../profiles/profile.schema.json");
        let current = format!("{:#}\n", schema(&Registry::linked()));
        if std::env::var_os("TIERBOX_TEST_BLESS").is_some() {
            std::fs::write(&path, &current).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap();
        assert!(committed == current, "{} has drifted: run this test with TIERBOX_TEST_BLESS=1", path.display());
    }

    #[test]
    fn the_ready_profiles_suit_the_backends_they_name() {
        let registry = Registry::linked();
        let loader = Loader::new(&registry).surroundings(Surroundings::empty("/opt"));
        let list = loader.list();
        assert!(list.len() >= 4);
        for listed in list {
            let profile = loader.load(&listed.name).unwrap();
            profile.spec(&registry, tierbox_core::Hold::Process).unwrap_or_else(|error| panic!("{}: {error}", listed.name));
        }
    }
}

//! The schema that editors read beside the ready profiles.

mod unit {
    use tierbox::Registry;

    /// With every backend; a build with fewer has less to say.
    #[test]
    fn the_committed_schema_is_that_of_the_code() {
        let registry = Registry::linked();
        if registry.names() != ["docker", "ec2", "local", "vagrant"] {
            return;
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../profiles/profile.schema.json");
        let current = format!("{:#}\n", tierbox::profile::schema(&registry));
        if std::env::var_os("TIERBOX_TEST_BLESS").is_some() {
            std::fs::write(path, &current).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap();
        assert!(committed == current, "run this test with TIERBOX_TEST_BLESS=1, and look at what changed in profiles/");
    }
}

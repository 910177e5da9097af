//! The rows of the device call table (gicv3.md) that are about addresses, and C9.

use proptest::prelude::*;

use super::*;

const IPA: u8 = 40;

fn frames(vcpus: usize) -> Frames {
    Frames::new(IPA, vcpus)
}

fn region(index: u16, base: u64, count: u16) -> RedistRegion {
    RedistRegion::new().with_index(index).with_base(base >> 16 & 0xf_ffff_ffff).with_count(count)
}

#[test]
fn the_distributor_is_placed_once_on_a_multiple_of_64k_below_the_end_of_addresses() {
    let mut frames = frames(1);
    assert_eq!(frames.set_distributor(0x0800_0100), Err(Errno::INVAL));
    assert_eq!(frames.set_distributor(1 << IPA), Err(Errno::TOOBIG));
    assert_eq!(frames.set_distributor(!0xffff), Err(Errno::INVAL), "reaches over the end of all addresses");
    assert_eq!(frames.set_distributor((1 << IPA) - 0x1_0000), Ok(()), "the last place");
    assert_eq!(frames.set_distributor(0x0800_0100), Err(Errno::EXIST), "before anything else");
}

#[test]
fn one_run_of_redistributors_keeps_clear_of_the_distributor_and_of_a_second_run() {
    let mut frames = frames(2);
    frames.set_distributor(0x0800_0000).unwrap();
    for over in [0x0800_0000, 0x07fd_0000, 0x0800_0000 - 0x2_0000] {
        assert_eq!(frames.set_redistributors(over), Err(Errno::INVAL), "{over:#x}");
    }
    assert_eq!(frames.set_redistributors(0x080a_0001), Err(Errno::INVAL));
    assert_eq!(frames.set_redistributors((1 << IPA) - 0x2_0000), Err(Errno::TOOBIG), "the second does not fit");
    assert_eq!(frames.set_redistributors(0x080a_0000), Ok(()));
    assert_eq!(frames.set_redistributors(0x0900_0000), Err(Errno::EXIST));
    assert_eq!(frames.add_region(region(0, 0x0900_0000, 1)), Err(Errno::INVAL), "index 0 is taken");
    assert_eq!(frames.check_complete(), Ok(()));
    assert_eq!(frames.at(0x080c_0014), Some((Some(1), 0x14)));
    assert_eq!(frames.at(0x080e_0000), None);
    assert_eq!((frames.is_last(0), frames.is_last(1)), (false, true), "C9");
}

#[test]
fn regions_come_in_order_and_do_not_touch_each_other() {
    let mut frames = frames(3);
    assert_eq!(frames.add_region(region(1, 0x0900_0000, 1)), Err(Errno::INVAL), "the first is number 0");
    assert_eq!(frames.add_region(region(0, 0x0900_0000, 0)), Err(Errno::INVAL), "none in it");
    assert_eq!(frames.add_region(region(0, 0x0900_0000, 1).with_flags(1)), Err(Errno::INVAL));
    assert_eq!(frames.add_region(region(0, 1 << 41, 1)), Err(Errno::TOOBIG));
    assert_eq!(frames.add_region(region(0, 0x0900_0000, 2)), Ok(()));
    assert_eq!(frames.set_redistributors(0x0a00_0000), Err(Errno::INVAL), "no one run beside regions");
    assert_eq!(frames.add_region(region(2, 0x0a00_0000, 1)), Err(Errno::INVAL));
    assert_eq!(frames.add_region(region(1, 0x0903_0000, 1)), Err(Errno::INVAL));
    assert_eq!(frames.check_complete(), Err(Errno::NXIO), "no distributor, no place for the third vCPU");
    assert_eq!(frames.add_region(region(1, 0x0904_0000, 4)), Ok(()));
    assert_eq!(frames.region(1), Some(region(1, 0x0904_0000, 4)));
    assert_eq!(frames.region(2), None);
    assert_eq!(frames.check_complete(), Err(Errno::NXIO));
    frames.set_distributor(0x0800_0000).unwrap();
    assert_eq!(frames.check_complete(), Ok(()));
    assert_eq!(frames.at(0x0905_fff8), Some((Some(2), 0x1_fff8)));
    assert_eq!([0, 1, 2].map(|vcpu| frames.is_last(vcpu)), [false, false, true], "C9: both regions are one run");
}

#[test]
fn c9_a_gap_between_regions_ends_a_run() {
    let mut frames = frames(2);
    frames.add_region(region(0, 0x0900_0000, 1)).unwrap();
    frames.add_region(region(1, 0x0a00_0000, 1)).unwrap();
    assert_eq!([0, 1].map(|vcpu| frames.is_last(vcpu)), [true, true]);
}

#[test]
fn a_distributor_over_a_region_is_found_out_when_it_is_used() {
    let mut frames = frames(1);
    frames.add_region(region(0, 0x0900_0000, 1)).unwrap();
    assert_eq!(frames.set_distributor(0x0901_0000), Ok(()));
    assert_eq!(frames.check_complete(), Err(Errno::INVAL));
    assert_eq!(frames.add_region(region(1, 0x0a00_0000, 1)), Ok(()), "as long as no vCPU needs a place");
    assert_eq!(frames.add_vcpu(), Err(Errno::INVAL));
    assert_eq!(frames.places.len(), 1, "there is no such vCPU then");
}

#[test]
fn vcpus_that_come_later_find_their_place() {
    let mut frames = frames(0);
    frames.set_redistributors(0x080a_0000).unwrap();
    frames.add_vcpu().unwrap();
    frames.add_vcpu().unwrap();
    assert_eq!(frames.at(0x080c_0000), Some((Some(1), 0)));
    assert!(frames.is_last(1) && !frames.is_last(0));
}

#[derive(Clone, Debug)]
enum Step {
    Distributor(u64),
    Redistributors(u64),
    Region(u16, u64, u16),
    Vcpu,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Few places, so that they meet; some at the end of addresses, and some on no multiple of 64K.
    let place = prop_oneof![
        (0u64..24).prop_map(|at| at << 16),
        (0u64..4).prop_map(|at| (1 << IPA) - (at << 16)),
        any::<u64>(),
    ];
    let step = prop_oneof![
        place.clone().prop_map(Step::Distributor),
        place.clone().prop_map(Step::Redistributors),
        (0u16..4, place, 0u16..4).prop_map(|(index, place, count)| Step::Region(index, place, count)),
        Just(Step::Vcpu),
    ];
    prop::collection::vec(step, 0..24)
}

proptest! {
    /// Whatever is said in whatever order: a refusal changes nothing, and frames that are complete lie below the end of
    /// addresses, aligned, each byte in one of them.
    #[test]
    fn frames_that_are_complete_are_apart(steps in steps()) {
        let mut frames = frames(1);
        for step in steps {
            let before = frames.clone();
            let answer = match step {
                Step::Distributor(base) => frames.set_distributor(base),
                Step::Redistributors(base) => frames.set_redistributors(base),
                Step::Region(index, base, count) => frames.add_region(region(index, base, count)),
                Step::Vcpu => frames.add_vcpu(),
            };
            if answer.is_err() {
                prop_assert_eq!(&frames, &before);
            }
            if frames.check_complete().is_err() {
                continue;
            }
            let mut spans = vec![(frames.distributor().unwrap(), DIST_BYTES)];
            for place in frames.places.iter().flatten() {
                spans.push((frames.regions[place.region].base + u64::from(place.at) * REDIST_BYTES, REDIST_BYTES));
            }
            spans.sort_unstable();
            prop_assert!(spans.iter().all(|(base, bytes)| base % 0x1_0000 == 0 && base + bytes <= 1 << IPA));
            prop_assert!(spans.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{:x?}", spans);
            for vcpu in 0..frames.places.len() {
                let at = frames.places[vcpu].unwrap();
                let base = frames.regions[at.region].base + u64::from(at.at) * REDIST_BYTES;
                prop_assert_eq!(frames.at(base), Some((Some(vcpu), 0)));
            }
        }
    }
}

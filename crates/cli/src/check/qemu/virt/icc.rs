//! The registers of the CPU interface that programs use, by the encodings of the architecture (Arm IHI 0069, chapter
//! "Programmers' Model", AArch64 system registers).

use std::fmt;

macro_rules! registers {
    ($($(#[$doc:meta])* $name:ident $text:literal ($crn:literal, $crm:literal, $op2:literal),)*) => {
        /// A register of the CPU interface, or ISR_EL1, which shows its outputs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Register { $($(#[$doc])* $name,)* }

        impl Register {
            const ALL: &'static [Self] = &[$(Self::$name,)*];

            fn parts(self) -> (&'static str, [u32; 3]) {
                match self { $(Self::$name => ($text, [$crn, $crm, $op2]),)* }
            }
        }
    };
}

registers! {
    /// The priority mask.
    Pmr "ICC_PMR_EL1" (4, 6, 0),
    /// Acknowledges Group 0.
    Iar0 "ICC_IAR0_EL1" (12, 8, 0),
    /// Ends Group 0.
    Eoir0 "ICC_EOIR0_EL1" (12, 8, 1),
    /// The most urgent of Group 0.
    Hppir0 "ICC_HPPIR0_EL1" (12, 8, 2),
    /// The binary point of Group 0.
    Bpr0 "ICC_BPR0_EL1" (12, 8, 3),
    /// Active priorities of Group 0.
    Ap0r0 "ICC_AP0R0_EL1" (12, 8, 4),
    /// Active priorities of Group 1.
    Ap1r0 "ICC_AP1R0_EL1" (12, 9, 0),
    /// Deactivates.
    Dir "ICC_DIR_EL1" (12, 11, 1),
    /// The running priority.
    Rpr "ICC_RPR_EL1" (12, 11, 3),
    /// Sends SGIs of Group 1.
    Sgi1r "ICC_SGI1R_EL1" (12, 11, 5),
    /// Sends SGIs of the other Group 1.
    Asgi1r "ICC_ASGI1R_EL1" (12, 11, 6),
    /// Sends SGIs of Group 0.
    Sgi0r "ICC_SGI0R_EL1" (12, 11, 7),
    /// Acknowledges Group 1.
    Iar1 "ICC_IAR1_EL1" (12, 12, 0),
    /// Ends Group 1.
    Eoir1 "ICC_EOIR1_EL1" (12, 12, 1),
    /// The most urgent of Group 1.
    Hppir1 "ICC_HPPIR1_EL1" (12, 12, 2),
    /// The binary point of Group 1.
    Bpr1 "ICC_BPR1_EL1" (12, 12, 3),
    /// Modes.
    Ctlr "ICC_CTLR_EL1" (12, 12, 4),
    /// System registers or memory.
    Sre "ICC_SRE_EL1" (12, 12, 5),
    /// Group 0 on.
    Igrpen0 "ICC_IGRPEN0_EL1" (12, 12, 6),
    /// Group 1 on.
    Igrpen1 "ICC_IGRPEN1_EL1" (12, 12, 7),
    /// Which of the CPU's interrupt inputs are high.
    Isr "ISR_EL1" (12, 1, 0),
}

impl Register {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied()
    }

    /// Whether MRS of it is defined.
    pub fn is_readable(self) -> bool {
        !matches!(self, Self::Eoir0 | Self::Eoir1 | Self::Dir | Self::Sgi0r | Self::Sgi1r | Self::Asgi1r)
    }

    /// Whether MSR to it is defined.
    pub fn is_writable(self) -> bool {
        !matches!(self, Self::Iar0 | Self::Iar1 | Self::Hppir0 | Self::Hppir1 | Self::Rpr | Self::Isr)
    }

    /// The two bytes by which MRS and MSR name it: op0, op1, CRn, CRm and op2.
    pub fn encoding(self) -> u16 {
        let [crn, crm, op2] = self.parts().1;
        (3 << 14 | crn << 7 | crm << 3 | op2) as u16
    }

    /// Whether a load takes an interrupt.
    pub fn acknowledges(self) -> bool {
        matches!(self, Self::Iar0 | Self::Iar1)
    }

    /// Its place in MRS and MSR: op0 is 3 and op1 is 0 for all of them.
    pub fn field(self) -> u32 {
        // The first bit of op0 is part of the instruction.
        (u32::from(self.encoding()) & 0x7fff) << 5
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.parts().0)
    }
}

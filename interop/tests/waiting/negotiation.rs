//! Negotiation step by step.

use super::{Client, Driver};
use nbd_io::client::{self, Error, Refused, StepOutcome};
use nbd_proto::{
    ContextName, ExportInfo, ExportName, HeaderStyle,
    client::{Context, Encrypted, Go, ListEntry, MetaContextEntry, Plain},
};

#[derive(Debug)]
pub(crate) enum Greeted<D: Driver> {
    FixedNewstyle(Negotiation<D, Plain>),
    Newstyle(Newstyle<D>),
    Oldstyle(Oldstyle<D>),
}

impl<D: Driver> Greeted<D> {
    pub(super) fn new(greeted: client::Greeted<D::Network>, driver: D) -> Self {
        match greeted {
            client::Greeted::FixedNewstyle(inner) => {
                Self::FixedNewstyle(Negotiation { inner, driver })
            }
            client::Greeted::Newstyle(inner) => Self::Newstyle(Newstyle { inner, driver }),
            client::Greeted::Oldstyle(inner) => Self::Oldstyle(Oldstyle { inner, driver }),
        }
    }

    pub(crate) fn negotiation(self) -> Option<Negotiation<D, Plain>> {
        match self {
            Self::FixedNewstyle(negotiation) => Some(negotiation),
            Self::Newstyle(_) | Self::Oldstyle(_) => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Newstyle<D: Driver> {
    inner: client::Newstyle<D::Network>,
    driver: D,
}

impl<D: Driver> Newstyle<D> {
    pub(crate) fn export_name(self, name: &ExportName) -> Result<Client<D>, Error> {
        let Self { inner, driver } = self;
        let inner = driver.wait(inner.export_name(name))?;
        Ok(Client { inner, driver })
    }
}

#[derive(Debug)]
pub(crate) struct Oldstyle<D: Driver> {
    inner: client::Oldstyle<D::Network>,
    driver: D,
}

impl<D: Driver> Oldstyle<D> {
    pub(crate) const fn export(&self) -> &ExportInfo {
        self.inner.export()
    }

    pub(crate) fn accept(self) -> Result<Client<D>, Error> {
        let Self { inner, driver } = self;
        let inner = driver.wait(inner.accept())?;
        Ok(Client { inner, driver })
    }
}

#[derive(Debug)]
pub(crate) struct Negotiation<D: Driver, S> {
    inner: client::Negotiation<D::Network, S>,
    driver: D,
}

impl<D: Driver, S: Send + 'static> Negotiation<D, S> {
    pub(super) const fn new(inner: client::Negotiation<D::Network, S>, driver: D) -> Self {
        Self { inner, driver }
    }

    pub(crate) fn mode(&self) -> HeaderStyle {
        self.inner.mode()
    }

    pub(crate) fn list(&mut self) -> Result<Vec<ListEntry>, Error> {
        self.driver.wait(self.inner.list())
    }

    pub(crate) fn info(&mut self, request: Go) -> Result<ExportInfo, Error> {
        self.driver.wait(self.inner.info(request))
    }

    pub(crate) fn structured_reply(&mut self) -> Result<(), Error> {
        self.driver.wait(self.inner.structured_reply())
    }

    pub(crate) fn extended_headers(&mut self) -> Result<(), Error> {
        self.driver.wait(self.inner.extended_headers())
    }

    pub(crate) fn list_meta_context(
        &mut self,
        export: &ExportName,
        queries: &[ContextName],
    ) -> Result<Vec<MetaContextEntry>, Error> {
        self.driver
            .wait(self.inner.list_meta_context(export, queries))
    }

    pub(crate) fn set_meta_context(
        &mut self,
        export: &ExportName,
        queries: &[ContextName],
    ) -> Result<Vec<Context>, Error> {
        self.driver
            .wait(self.inner.set_meta_context(export, queries))
    }

    pub(crate) fn abort(self) {
        self.driver.wait(self.inner.abort());
    }
}

macro_rules! entering {
    ($security:ty) => {
        impl<D: Driver> Negotiation<D, $security> {
            pub(crate) fn go(self, request: Go) -> Result<StepOutcome<Client<D>, Self>, Error> {
                let Self { inner, driver } = self;
                Ok(match driver.wait(inner.go(request))? {
                    StepOutcome::Done(inner) => StepOutcome::Done(Client { inner, driver }),
                    StepOutcome::Refused(refused) => StepOutcome::Refused(again(refused, driver)),
                })
            }

            pub(crate) fn export_name(self, name: &ExportName) -> Result<Client<D>, Error> {
                let Self { inner, driver } = self;
                let inner = driver.wait(inner.export_name(name))?;
                Ok(Client { inner, driver })
            }
        }
    };
}

entering!(Plain);
entering!(Encrypted);

impl<D: Driver> Negotiation<D, Plain> {
    pub(crate) fn start_tls(self) -> Result<StepOutcome<Negotiation<D, Encrypted>, Self>, Error> {
        let Self { inner, driver } = self;
        Ok(match driver.wait(inner.start_tls())? {
            StepOutcome::Done(inner) => StepOutcome::Done(Negotiation { inner, driver }),
            StepOutcome::Refused(refused) => StepOutcome::Refused(again(refused, driver)),
        })
    }
}

/// The negotiation that goes on after a refusal.
fn again<D: Driver, S>(
    refused: client::RefusedStep<D::Network, S>,
    driver: D,
) -> Refused<Negotiation<D, S>> {
    let Refused {
        handle: inner,
        error,
    } = refused;
    Refused {
        handle: Negotiation { inner, driver },
        error,
    }
}
